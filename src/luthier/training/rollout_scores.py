"""What the models say of a rollout's answers before anything is learned from them: streams of the segments.

Shapes: N learned tokens of a batch, T of one segment.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from luthier.data.pack import pack
from luthier.training.credit import learned_places, put_stream, stream_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.batch import PackedBatch
    from luthier.core.protocols import Read
    from luthier.core.types import Segment
    from luthier.models.policy import Policy
    from luthier.models.reference import Reference


@torch.no_grad()
def score(
    segments: Sequence[Segment],
    rows: int,
    tokens: int,
    *,
    policy: Policy | None,
    reads: frozenset[Read],
    reference: Reference | None,
    device: torch.device,
) -> None:
    """Add the streams "old_logp" and, where it is read, "old_value" of `policy`, and "ref_logp" of `reference`."""
    for part in split(segments, rows, tokens):
        batch = pack([[segment] for segment in part]).to(device)
        if policy is not None:
            scores = policy(batch, reads=reads)
            _spread(part, batch, "old_logp", scores.logp)
            if scores.value is not None:
                _spread(part, batch, "old_value", scores.value)
        if reference is not None:
            _spread(part, batch, "ref_logp", reference.logp(batch))


def _spread(segments: Sequence[Segment], batch: PackedBatch, name: str, x_N: torch.Tensor) -> None:
    """Hand the numbers of a batch back to its segments."""
    counts = [len(learned_places(segment)) for segment in segments]
    for segment, x_T in zip(segments, x_N.float().cpu().split(counts), strict=True):
        put_stream(segment, name, x_T.numpy())


def weigh_by_engine(segments: Sequence[Segment], cap: float) -> None:
    """Add the stream "correction": min(exp(old - engine), cap), truncated importance weights (arXiv:2508.03501)."""
    for segment in segments:
        ratio_T = np.exp(np.clip(stream_of(segment, "old_logp") - stream_of(segment, "engine_logp"), -20, 20))
        put_stream(segment, "correction", np.minimum(ratio_T, cap))


def gap(segments: Sequence[Segment]) -> tuple[float, float, float]:
    """Return sum, count and largest of |trainer's - engine's log-probability| over learned tokens."""
    there = [segment for segment in segments if "engine_logp" in segment.streams]
    parts = [np.abs(stream_of(s, "old_logp") - stream_of(s, "engine_logp")) for s in there]
    every = np.concatenate(parts) if parts else np.zeros(0)
    return float(every.sum()), float(len(every)), float(every.max(initial=0.0))


def drop_streams(segments: Sequence[Segment], kept: frozenset[str]) -> None:
    """Leave only the streams that the objective reads."""
    for segment in segments:
        segment.streams = {name: x for name, x in segment.streams.items() if name in kept}


def split(segments: Sequence[Segment], rows: int, tokens: int) -> list[list[Segment]]:
    """Split into forward passes of at most so many answers and tokens; a prompt that follows itself counts once.

    The results do not depend on it.
    """
    parts: list[list[Segment]] = []
    room, prompt = 0, None
    for segment in segments:
        first = int(learned_places(segment)[0])
        here = segment.tokens[:first]
        needed = len(segment.tokens) - (first if here == prompt and parts else 0)
        if not parts or needed > room or len(parts[-1]) == rows:
            parts.append([])
            room, needed = tokens, len(segment.tokens)
        parts[-1].append(segment)
        room, prompt = room - needed, here
    return parts


def chunks(items: Sequence[Any], count: int) -> list[list[Any]]:
    """Split into `count` parts whose sizes differ by at most one.

    >>> chunks([1, 2, 3, 4, 5], 2)
    [[1, 2, 3], [4, 5]]
    """
    sizes = [len(items) // count + (i < len(items) % count) for i in range(count)]
    ends = np.cumsum([0, *sizes])
    return [list(items[a:b]) for a, b in pairwise(ends)]
