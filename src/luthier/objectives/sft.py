"""Pretraining and supervised fine-tuning: weighted negative log-likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from luthier.core.protocols import Need, Read
from luthier.core.registry import OBJECTIVES
from luthier.core.types import RowKind

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.core.batch import Loss, PackedBatch, Scores


def _negative_log_likelihood(scores: Scores, batch: PackedBatch) -> Loss:
    from luthier.core.batch import Loss  # needs torch, which reading settings does not

    return Loss(-(scores.logp * batch.weight).sum())


@OBJECTIVES.register("sft")
@dataclass(frozen=True, kw_only=True, slots=True)
class Sft:
    """Learn to give the answers of the data; the mean over all trained tokens of an optimizer step."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    reads: ClassVar[frozenset[Read]] = frozenset({"logp"})
    rows: ClassVar[RowKind] = "answer"
    segments_per_unit: ClassVar[int] = 1
    rate_factor: ClassVar[float] = 1.0

    def count(self, batch: PackedBatch) -> Tensor:
        """Return the sum of token weights."""
        return batch.weight.sum()

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return -sum of weight x log-probability, in nats."""
        return _negative_log_likelihood(scores, batch)


@OBJECTIVES.register("pt")
@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrain:
    """Learn every token of plain text; the mean over all trained tokens of an optimizer step."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    reads: ClassVar[frozenset[Read]] = frozenset({"logp"})
    rows: ClassVar[RowKind] = "text"
    segments_per_unit: ClassVar[int] = 1
    rate_factor: ClassVar[float] = 1.0

    def count(self, batch: PackedBatch) -> Tensor:
        """Return the sum of token weights."""
        return batch.weight.sum()

    def __call__(self, scores: Scores, batch: PackedBatch) -> Loss:
        """Return -sum of weight x log-probability, in nats."""
        return _negative_log_likelihood(scores, batch)
