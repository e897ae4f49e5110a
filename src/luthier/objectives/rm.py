"""Reward models: two answers to one prompt, and a number for each.

Shapes: N predictions, S segments, P pairs; segments 2p and 2p + 1 are the chosen and the rejected answer of pair p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from luthier.core.protocols import Need, Read
from luthier.core.registry import OBJECTIVES
from luthier.objectives.pairs import PairSettings, both, pair_loss, watched_rewards

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Loss, PackedBatch, Scores


@OBJECTIVES.register("rm")
@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModeling(PairSettings):
    """Give the chosen answer a higher reward than the rejected one; the mean over pairs.

    With r the value at the last token of an answer, the loss of a pair is
    -log sigmoid(r(chosen) - r(rejected) - margin): Bradley and Terry (1952) as in arXiv:2203.02155, equation 1; the
    margin is that of arXiv:2307.09288, equation 2.
    """

    reads: ClassVar[frozenset[Read]] = frozenset({"value"})
    rate_factor: ClassVar[float] = 0.2
    margin: Annotated[float, Field(ge=0)] = 0.0
    """What the difference of the rewards should exceed; the column "margin" of a row is added to it."""
    centering: Annotated[float, Field(ge=0)] = 0.0
    """Weight of (r(chosen) + r(rejected)) squared, which keeps rewards around 0 (arXiv:2312.09244); 0.01 is usual."""

    @property
    def needs(self) -> frozenset[Need]:
        """A value head."""
        return frozenset({"value"})

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return the sum over pairs, and what is worth watching."""
        from luthier.core.batch import Loss  # needs torch, which reading settings does not

        assert scores.value is not None, "the policy has a value head"
        count, reward_S = self.count(batch), scores.value[_last(batch)]
        chosen_P, rejected_P = both(reward_S)
        margin_P = chosen_P - rejected_P - self.margin
        if "margin" in batch.tags:
            margin_P = margin_P - both(batch.tags["margin"])[0]
        loss_P = pair_loss("sigmoid", margin_P, 1.0)
        if self.centering:
            loss_P = loss_P + self.centering * (chosen_P + rejected_P) ** 2
        metrics = watched_rewards(reward_S, count)
        metrics["rewards/spread"] = ((chosen_P - rejected_P).detach().abs().sum(), count)
        return Loss(loss_P.sum(), metrics)


def _last(batch: PackedBatch) -> Tensor:
    """Return the last prediction of each segment, [S]: the one that the end of its answer makes."""
    import torch

    every_S = torch.arange(batch.num_segments, device=batch.segment_ids.device)
    return torch.searchsorted(batch.segment_ids, every_S, right=True) - 1
