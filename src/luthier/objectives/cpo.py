"""Contrastive preference optimization: two answers to one prompt, without a reference.

Shapes: S segments, P pairs; segments 2p and 2p + 1 are the chosen and the rejected answer of pair p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from luthier.core.registry import OBJECTIVES
from luthier.objectives.pairs import PairLoss, PairSettings, both, check_smoothing, pair_loss, sums_and_means, watched

if TYPE_CHECKING:
    from luthier.core.batch import Loss, PackedBatch, Scores


@OBJECTIVES.register("cpo")
@dataclass(frozen=True, kw_only=True, slots=True)
class Cpo(PairSettings):
    """Prefer the chosen answer, and learn to give it; the mean over pairs.

    With m = log p(chosen) - log p(rejected), answers summed over tokens, the loss of a pair is -log sigmoid(beta m) and
    the chosen answer's negative log-likelihood: arXiv:2401.08417, equations 3 to 5. The latter is a mean over tokens as
    in TRL, so that its weight does not depend on lengths.
    """

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How fast the loss of a pair falls with the margin."""
    loss: PairLoss = "sigmoid"
    """sigmoid (the paper's), hinge (SLiC), ipo (means over tokens instead of sums), robust (flipped labels)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs whose label is assumed to be flipped; for sigmoid and robust."""
    sft_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the chosen answer's negative log-likelihood, mean over its tokens, added to the loss."""

    def __post_init__(self) -> None:
        check_smoothing(self.loss, self.label_smoothing)

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return the sum over pairs, and what is worth watching."""
        from luthier.core.batch import Loss  # needs torch, which reading settings does not

        logp_S, mean_logp_S = sums_and_means(batch, scores.logp)
        chosen_P, rejected_P = both(mean_logp_S if self.loss == "ipo" else logp_S)
        loss_P = pair_loss(self.loss, chosen_P - rejected_P, self.beta, self.label_smoothing)
        nll_P = -both(mean_logp_S)[0]
        metrics = watched(self.beta * logp_S, logp_S, self.count(batch))
        metrics["nll"] = (nll_P.detach().sum(), self.count(batch))
        return Loss((loss_P + self.sft_weight * nll_P).sum(), metrics)
