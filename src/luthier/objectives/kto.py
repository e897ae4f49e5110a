"""Kahneman-Tversky optimization: answers that are tagged good or bad, one to a prompt, and a reference that stays.

Shapes: S segments, one an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from luthier.core.protocols import Need, Read
from luthier.core.registry import OBJECTIVES
from luthier.core.types import RowKind
from luthier.objectives.pairs import sums_and_means

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Loss, PackedBatch, Scores


@OBJECTIVES.register("kto")
@dataclass(frozen=True, kw_only=True, slots=True)
class Kto:
    """Lift good answers above a baseline that bad ones are pushed below; the mean over answers.

    With r = log p(answer) - log ref(answer), summed over tokens, and the baseline z = max(0, mean r of answers to other
    prompts), the loss of a good answer is w (1 - sigmoid(beta (r - z))), and that of a bad one
    w (1 - sigmoid(beta (z - r))): arXiv:2402.01306, equation 7.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "baseline"})
    reads: ClassVar[frozenset[Read]] = frozenset({"logp"})
    rows: ClassVar[RowKind] = "tagged"
    segments_per_unit: ClassVar[int] = 1
    rate_factor: ClassVar[float] = 0.1
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How soon a gain or a loss is felt to be enough; higher values hold the policy closer to the reference."""
    desirable_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of good answers. Weight x number of good answers should be 1 to 1.33 times that of bad ones."""
    undesirable_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of bad answers."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the good answers' negative log-likelihood, mean over their tokens, added to the loss."""

    def count(self, batch: PackedBatch) -> Tensor:
        """Return the number of answers."""
        return batch.weight.new_tensor(batch.num_segments)

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return the sum over answers, and what is worth watching."""
        from luthier.core.batch import Loss  # needs torch, which reading settings does not

        assert "ref_logp" in batch.streams, "the trainer annotates batches with the reference's log-probabilities"
        assert "baseline" in batch.tags, "the trainer annotates batches with the baseline of mismatched answers"
        ratio_S, _ = sums_and_means(batch, scores.logp - batch.streams["ref_logp"])
        logp_S, mean_logp_S = sums_and_means(batch, scores.logp)
        good_S, baseline_S = batch.tags["desirable"] > 0, batch.tags["baseline"].detach()
        sign_S = 2 * good_S.to(ratio_S.dtype) - 1
        weight_S = self.undesirable_weight + (self.desirable_weight - self.undesirable_weight) * good_S
        # 1 - sigmoid(x) is sigmoid(-x), which loses nothing where sigmoid(x) is near 1.
        loss_S = weight_S * (self.beta * sign_S * (baseline_S - ratio_S)).sigmoid()
        if self.sft_weight:
            loss_S = loss_S - self.sft_weight * good_S * mean_logp_S
        reward_S = self.beta * ratio_S
        metrics = {
            f"{name}/{side}": ((x_S.detach() * of_S).sum(), of_S.sum())
            for name, x_S in (("rewards", reward_S), ("logps", logp_S))
            for side, of_S in (("chosen", good_S), ("rejected", ~good_S))
        }
        ahead_S = (sign_S * (ratio_S - baseline_S)).detach()
        metrics["rewards/accuracies"] = ((ahead_S > 0).sum() + 0.5 * (ahead_S == 0).sum(), self.count(batch))
        return Loss(loss_S.sum(), {**metrics, "kl": (baseline_S.sum(), self.count(batch))})
