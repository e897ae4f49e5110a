"""Segments -> PackedBatch: no padding, common prefixes computed once, the head only where a prediction is wanted."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from luthier.core.batch import PackedBatch, Spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.types import Segment, Unit

MIN_SHARED_TOKENS = 16
"""Shorter common prefixes are computed again: a span of its own would cost more than it saves."""


@dataclass(slots=True)
class _Forest:
    """Spans in the order of their tokens, and for each segment the token index of each of its positions."""

    tokens: list[np.ndarray]
    index_of: list[list[np.ndarray]]
    input_ids: list[np.ndarray] = field(default_factory=list[np.ndarray])
    positions: list[np.ndarray] = field(default_factory=list[np.ndarray])
    start: list[int] = field(default_factory=list[int])
    end: list[int] = field(default_factory=list[int])
    parent: list[int] = field(default_factory=list[int])

    def grow(self, group: list[int], depth: int, parent: int, agreed: int = 0) -> None:
        """Add the spans of the segments in `group` from token `depth` on; they agree on the first `agreed`, or `depth`.

        Where all agree on too little for a span, some may still agree on more.
        """
        agreed = max(agreed, depth)
        branches: dict[int, list[int]] = defaultdict(list)
        for segment in group:
            if len(self.tokens[segment]) > agreed:
                branches[int(self.tokens[segment][agreed])].append(segment)
            elif agreed > depth:
                self._add([segment], depth, agreed, parent)
        for branch in branches.values():
            shared = self._common_length(branch)
            if len(branch) == 1:
                self._add(branch, depth, shared, parent)
            elif shared - depth < MIN_SHARED_TOKENS:
                self.grow(branch, depth, parent, shared)
            else:
                self.grow(branch, shared, self._add(branch, depth, shared, parent))

    def _common_length(self, group: list[int]) -> int:
        first, length = self.tokens[group[0]], min(len(self.tokens[segment]) for segment in group)
        for segment in group[1:]:
            differs = first[:length] != self.tokens[segment][:length]
            length = int(differs.argmax()) if differs.any() else length
        return length

    def _add(self, group: list[int], depth: int, stop: int, parent: int) -> int:
        begin = self.end[-1] if self.end else 0
        self.input_ids.append(self.tokens[group[0]][depth:stop])
        self.positions.append(np.arange(depth, stop))
        self.start.append(begin)
        self.end.append(begin + stop - depth)
        self.parent.append(parent)
        for segment in group:
            self.index_of[segment].append(np.arange(begin, begin + stop - depth))
        return len(self.start) - 1


def pack(units: Sequence[Unit]) -> PackedBatch:
    """Lay the segments of `units` end to end as a forest of spans; those that are set aside make a batch beside it.

    Tokens behind the last prediction of a segment feed nothing and are left out. Segments keep their order.
    """
    segments = [segment for unit in units for segment in unit]
    aside = [segment for segment in segments if segment.aside]
    batch = _pack([segment for segment in segments if not segment.aside])
    return replace(batch, aside=_pack(aside)) if aside else batch


def _pack(segments: Sequence[Segment]) -> PackedBatch:
    wanted = [np.flatnonzero(np.asarray(segment.weight)[1:]) + 1 for segment in segments]
    # Token i is predicted by the hidden state of token i - 1, so the last wanted token itself is not computed.
    tokens = [
        np.asarray(s.tokens, dtype=np.int64)[: w[-1] if len(w) else 0] for s, w in zip(segments, wanted, strict=True)
    ]
    forest = _Forest(tokens, [[] for _ in segments])
    forest.grow(list(range(len(segments))), 0, -1)
    rows = [np.concatenate(i)[w - 1] for i, w in zip(forest.index_of, wanted, strict=True) if len(w)]
    of_segment = [np.full(len(w), s) for s, w in enumerate(wanted)]
    return PackedBatch(
        input_ids=_long(forest.input_ids),
        position_ids=_long(forest.positions),
        spans=Spans(tuple(forest.start), tuple(forest.end), tuple(forest.parent)),
        rows=_long(rows),
        targets=_long([np.asarray(s.tokens)[w] for s, w in zip(segments, wanted, strict=True)]),
        weight=_gather([s.weight for s in segments], wanted),
        segment_ids=_long(of_segment),
        num_segments=len(segments),
        streams={name: _gather([s.streams[name] for s in segments], wanted) for name in _names(segments, "streams")},
        tags={name: torch.tensor([s.tags[name] for s in segments]) for name in _names(segments, "tags")},
        origins=tuple(s.origin for s in segments),
        segment_tokens=sum(len(s.tokens) for s in segments),
    )


def _names(segments: Sequence[Segment], attribute: str) -> list[str]:
    return list(getattr(segments[0], attribute)) if segments else []


def _long(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64)) if parts else torch.zeros(0, dtype=torch.long)


def _gather(values: Sequence[Sequence[float]], wanted: Sequence[np.ndarray]) -> torch.Tensor:
    parts = [np.asarray(v, dtype=np.float32)[w] for v, w in zip(values, wanted, strict=True)]
    return torch.from_numpy(np.concatenate(parts)) if parts else torch.zeros(0)


def plan_batches(lengths: Sequence[int], rows_per_batch: int, fill_tokens: int | None) -> list[list[int]]:
    """Group consecutive rows into batches: a fixed number of rows, or as many as fit into `fill_tokens`.

    >>> plan_batches([5, 5, 5], 2, None), plan_batches([5, 5, 5], 2, 12)
    ([[0, 1], [2]], [[0, 1], [2]])
    """
    if fill_tokens is None:
        return [list(range(i, min(i + rows_per_batch, len(lengths)))) for i in range(0, len(lengths), rows_per_batch)]
    batches: list[list[int]] = []
    room = 0
    for row, length in enumerate(lengths):
        if not batches or length > room:
            batches.append([])
            room = fill_tokens
        batches[-1].append(row)
        room -= length
    return batches
