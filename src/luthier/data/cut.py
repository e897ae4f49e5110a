"""Units that fit into cutoff_len: answers lose their end, or prompts their beginning."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.core.types import Segment, Unit


def learned_range(segment: Segment) -> tuple[int, int]:
    """Return where the first learned token is, and where the last one ends."""
    places = [i for i, weight in enumerate(segment.weight) if weight]
    return places[0], places[-1] + 1


def cut_end(segment: Segment, limit: int) -> Segment:
    """Return the first `limit` tokens."""
    if len(segment.tokens) <= limit:
        return segment
    return replace(segment, tokens=segment.tokens[:limit], weight=segment.weight[:limit])


def cut_prompt(unit: Unit, limit: int, begin: int | None) -> tuple[Unit, int] | None:
    """Return the unit with whole answers of at most `limit` tokens, and how many each prompt lost at its beginning.

    What follows an answer is left out; a first token that is `begin` stays. None where that leaves nothing of a prompt.
    """
    ranges = [learned_range(segment) for segment in unit]
    excess = max(0, max(stop for _, stop in ranges) - limit)
    kept = int(unit[0].tokens[0] == begin)
    if excess and excess >= min(start for start, _ in ranges) - kept:
        return None

    def fit(segment: Segment, stop: int) -> Segment:
        first = kept + excess
        tokens = [*segment.tokens[:kept], *segment.tokens[first:stop]]
        return replace(segment, tokens=tokens, weight=[*segment.weight[:kept], *segment.weight[first:stop]])

    return [fit(segment, stop) for segment, (_, stop) in zip(unit, ranges, strict=True)], excess


def read_at_end(segment: Segment) -> Segment:
    """Return the segment with one prediction, made where its last token stands: there a reward is read.

    What is predicted is of no account; it is the last token once more, and no part of what is computed.
    """
    return replace(segment, tokens=[*segment.tokens, segment.tokens[-1]], weight=[0.0] * len(segment.tokens) + [1.0])
