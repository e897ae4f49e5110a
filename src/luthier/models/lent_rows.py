"""Batches of foreign trainers as rows without padding: which tokens are real, where rows begin, what is read of them.

Shapes: B rows of T places, padding included; N places that are read; L tokens that are computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from luthier.core.batch import PackedBatch, Spans
from luthier.core.types import Segment
from luthier.data.pack import pack


@dataclass(frozen=True, slots=True)
class Rows:
    """A forest of spans and where it answers what is asked of the batch."""

    input_ids: Tensor
    """[1, L]."""
    position_ids: Tensor
    """[1, L], those of the batch: padding on the left moves them."""
    spans: Spans
    rows: Tensor
    """[N], the computed token that answers for each place that is read, in the order of those places."""


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Consecutive real tokens of one row that see each other."""

    row: int
    start: int
    stop: int
    position: int
    """Of the first token."""


def rows_of(
    input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, read_BT: Tensor
) -> Rows | None:
    """Return a padded or flattened batch as packed rows; None where only the plain way gives its numbers.

    `attention_mask` is [B, T]; `read_BT` is True at the places whose hidden states are read. Without a mask, positions
    that do not go on begin a row of their own, as transformers sees them. The plain way is left for masks with holes,
    positions that jump under a mask, reads of padding, and when nothing is read.
    """
    found = _stretches(input_ids, attention_mask, position_ids)
    if found is None or not bool(read_BT.any()) or _reads_padding(attention_mask, read_BT):
        return None
    parts: list[tuple[list[_Stretch], PackedBatch]] = []
    tokens_BT, reads_BT = input_ids.cpu(), read_BT.cpu()
    for position in sorted({stretch.position for stretch in found}):
        group = [stretch for stretch in found if stretch.position == position]
        parts.append((group, pack([[_segment(stretch, tokens_BT, reads_BT)] for stretch in group])))
    return _laid_together(parts, reads_BT, input_ids.device)


def _stretches(input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> list[_Stretch] | None:
    """Return the stretches of real tokens, row by row; None where a row is no single one under a mask."""
    num_rows, width = input_ids.shape
    counted = torch.arange(width)[None]
    position_BT = counted if position_ids is None else position_ids.cpu()
    position_BT = position_BT.expand(num_rows, width)
    real_BT = torch.ones(num_rows, width) if attention_mask is None else (attention_mask.cpu() != 0).float()
    edges_BT = torch.diff(F.pad(real_BT, (1, 1)), dim=1)
    jumps_BT = F.pad(torch.diff(position_BT, dim=1) != 1, (1, 0))
    found: list[_Stretch] = []
    for row in range(num_rows):
        starts: list[int] = (edges_BT[row] > 0).nonzero()[:, 0].tolist()
        stops: list[int] = (edges_BT[row] < 0).nonzero()[:, 0].tolist()
        if not starts:
            continue
        start, stop = starts[0], stops[0]
        cuts: list[int] = [start, *((jumps_BT[row, start + 1 : stop]).nonzero()[:, 0] + start + 1).tolist(), stop]
        if len(starts) > 1 or (len(cuts) > 2 and attention_mask is not None):
            return None
        found += [_Stretch(row, a, b, int(position_BT[row, a])) for a, b in pairwise(cuts)]
    return found


def _reads_padding(attention_mask: Tensor | None, read_BT: Tensor) -> bool:
    return attention_mask is not None and bool((read_BT & (attention_mask == 0)).any())


def _segment(stretch: _Stretch, tokens_BT: Tensor, reads_BT: Tensor) -> Segment:
    """Return a stretch in the words of `pack`, where a place is read in order to predict the token behind it."""
    here = slice(stretch.start, stretch.stop)
    read: list[float] = reads_BT[stretch.row, here].float().tolist()
    return Segment(tokens=[*tokens_BT[stretch.row, here].tolist(), 0], weight=[0.0, *read])


def _laid_together(parts: list[tuple[list[_Stretch], PackedBatch]], reads_BT: Tensor, device: Any) -> Rows:
    """Join packed batches, each of stretches that begin at one position, and sort what is read as in the batch."""
    spans, rows_of_place = Spans((), (), ()), torch.full(reads_BT.shape, -1)
    positions: list[Tensor] = []
    for group, batch in parts:
        spans = _behind(spans, batch.spans)
        done = sum(len(part) for part in positions)
        positions.append(batch.position_ids + group[0].position)
        for index, stretch in enumerate(group):
            here = slice(stretch.start, stretch.stop)
            rows_of_place[stretch.row, here][reads_BT[stretch.row, here]] = (
                batch.rows[batch.segment_ids == index] + done
            )
    input_ids = torch.cat([batch.input_ids for _, batch in parts])
    return Rows(
        input_ids[None].to(device), torch.cat(positions)[None].to(device), spans, rows_of_place[reads_BT].to(device)
    )


def _behind(first: Spans, second: Spans) -> Spans:
    """Return both forests, the second laid behind the first."""
    tokens, count = max(first.end, default=0), len(first)
    return Spans(
        first.start + tuple(start + tokens for start in second.start),
        first.end + tuple(end + tokens for end in second.end),
        first.parent + tuple(parent + count if parent >= 0 else -1 for parent in second.parent),
    )
