"""Direct preference optimization and its relatives: two answers to one prompt, and a reference that stays.

Shapes: S segments, P pairs; segments 2p and 2p + 1 are the chosen and the rejected answer of pair p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from luthier.core.registry import OBJECTIVES
from luthier.objectives.pairs import (
    PairLoss,
    PairSettings,
    beyond_shorter,
    both,
    check_smoothing,
    classifier_loss,
    pair_loss,
    sums_and_means,
    watched,
)

if TYPE_CHECKING:
    from luthier.core.batch import Loss, PackedBatch, Scores
    from luthier.core.protocols import Need


@OBJECTIVES.register("dpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class Dpo(PairSettings):
    """Prefer the chosen answer to the rejected one by more than the reference does; the mean over pairs.

    With m = (log p(chosen) - log ref(chosen)) - (log p(rejected) - log ref(rejected)), answers summed over tokens, the
    loss of a pair is -log sigmoid(beta m): arXiv:2305.18290, equation 7.

    With a bco_weight w, rewards r = beta (log p - log ref) are also told apart by a threshold d, as binary classifier
    optimization does it (arXiv:2404.04656): b = -log sigmoid(r(chosen) - d) - log sigmoid(d - r(rejected)), and the
    loss of a pair is (loss + w b) / (1 + w). The threshold is the mean reward of all answers of one update, over every
    rank (while evaluating of one batch), before it and without a gradient, so that it depends on the weights alone;
    others take the mean over all batches since the run began, which is slow to forget what the first weights said.
    """

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly the policy is held to the reference."""
    loss: PairLoss = "sigmoid"
    """sigmoid (DPO), hinge (SLiC), ipo (means over tokens instead of sums), robust (unbiased under flipped labels)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs whose label is assumed to be flipped; for sigmoid (then cDPO) and robust."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answer's negative log-likelihood, mean over its tokens, added to the loss."""
    ld_alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Weight of tokens beyond the length of the shorter answer; below 1, length counts less (arXiv:2409.06411)."""

    bco_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of telling good answers from bad ones by a threshold on their rewards, beside the preference (BCO)."""

    def __post_init__(self) -> None:
        check_smoothing(self.loss, self.label_smoothing)
        if self.ld_alpha < 1 and self.loss == "ipo":
            raise ValueError("ld_alpha weighs sums over tokens, but the loss ipo takes means; leave one of them out")
        if self.bco_weight and (self.ld_alpha < 1 or self.loss == "ipo"):
            raise ValueError(
                "bco_weight takes plain sums over tokens, but ipo and ld_alpha do not; leave one of them out"
            )

    @property
    def needs(self) -> frozenset[Need]:
        """A reference, and what all answers of an update tell together where they are compared with that."""
        return frozenset({"reference", "center"}) if self.bco_weight else frozenset({"reference"})

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return the sum over pairs, and what is worth watching."""
        from luthier.core.batch import Loss  # needs torch, which reading settings does not

        assert "ref_logp" in batch.streams, "the trainer annotates batches with the reference's log-probabilities"
        weighed_N = beyond_shorter(batch, self.ld_alpha)
        ratio_S, mean_ratio_S = sums_and_means(batch, weighed_N * (scores.logp - batch.streams["ref_logp"]))
        logp_S, mean_logp_S = sums_and_means(batch, scores.logp)
        chosen_P, rejected_P = both(mean_ratio_S if self.loss == "ipo" else ratio_S)
        loss_P = pair_loss(self.loss, chosen_P - rejected_P, self.beta, self.label_smoothing)
        metrics = watched(self.beta * ratio_S, logp_S, self.count(batch))
        if self.bco_weight:
            assert "center" in batch.tags, "the trainer annotates batches with the mean of an update"
            center_S = self.beta * batch.tags["center"].detach()
            told_P = classifier_loss(self.beta * ratio_S - center_S)
            loss_P = (loss_P + self.bco_weight * told_P) / (1 + self.bco_weight)
            metrics["rewards/threshold"] = (both(center_S)[0].sum(), self.count(batch))
        if self.sft_weight:
            loss_P = loss_P - self.sft_weight * both(mean_logp_S)[0]
        return Loss(loss_P.sum(), metrics)
