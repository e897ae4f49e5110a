"""Rows as training sees them: every token, whether it is learned, read, or cut off."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import DataError
from luthier.data.audit import AuditReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luthier.core.types import Segment, Unit
    from luthier.data.prepare import Preparer
    from luthier.data.sources import Row, Source

_NO_LIMIT = 1 << 40
_LONGEST_CHARACTER = 8
"""Tokens that a character may be spread over; what is still none is shown as it is."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One token."""

    id: int
    text: str
    kind: Literal["learned", "read", "cut"]
    special: bool


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence of a row."""

    name: str
    """Such as chosen and rejected; empty where there is one."""
    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class RowTokens:
    """A row as training sees it."""

    where: str
    segments: list[Part]
    problem: str
    """Why it has no tokens, or none that is learned."""


def texts_of(tokens: Sequence[int], tokenizer: Any) -> list[str]:
    """Return the text of each token; a character that spans several tokens stands at the last of them."""
    texts: list[str] = []
    pending: list[int] = []
    for token in tokens:
        pending.append(token)
        text = tokenizer.decode(pending, clean_up_tokenization_spaces=False)
        texts.append("" if text.endswith("\ufffd") and len(pending) < _LONGEST_CHARACTER else text)
        pending = pending if texts[-1] == "" and text else []
    if pending and texts:
        texts[-1] = tokenizer.decode(pending, clean_up_tokenization_spaces=False)
    return texts


def names_of(unit: Unit, kind: str) -> tuple[str, ...]:
    """Return what the segments of a unit are called."""
    if kind == "tagged":
        return ("desirable" if unit[0].tags["desirable"] else "undesirable", "answer to another prompt")[: len(unit)]
    return ("chosen", "rejected") if kind == "pair" else ("",) * len(unit)


def tokens_of(row: Row, source: Source, preparer: Preparer) -> RowTokens:
    """Return the tokens of a row, those that cutoff_len takes away included."""
    unlimited = replace(preparer, config=replace(preparer.config, cutoff_len=_NO_LIMIT))
    try:
        whole = unlimited.unit_of(row, source, AuditReport())
        report = AuditReport()
        kept = preparer.unit_of(row, source, report)
    except DataError as error:
        return RowTokens(row.where, [], str(error))
    problem = "" if kept else "; ".join(finding.message for finding in report.findings)
    if preparer.kind == "text":  # a long document becomes several sequences, and nothing of it is cut
        whole = kept
    segments: list[Part] = []
    for place, unit in enumerate(whole):
        parts: Sequence[Segment | None] = kept[place] if place < len(kept) else [None] * len(unit)
        for name, full, part in zip(names_of(unit, preparer.kind), unit, parts, strict=True):
            segments.append(Part(name, _pieces(full, part, preparer)))
    return RowTokens(row.where, segments, problem)


def _pieces(whole: Segment, kept: Segment | None, preparer: Preparer) -> list[Piece]:
    tokenizer = preparer.template.tokenizer
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokens = whole.tokens[:-1] if preparer.reads_end else whole.tokens
    kinds = _kinds(tokens, kept, reads_end=preparer.reads_end)
    return [
        Piece(token, text, kind, token in special)
        for token, text, kind in zip(tokens, texts_of(tokens, tokenizer), kinds, strict=True)
    ]


def _kinds(tokens: Sequence[int], kept: Segment | None, *, reads_end: bool) -> list[Literal["learned", "read", "cut"]]:
    """Return what becomes of each token. What is kept is a beginning, or a beginning and an end."""
    if kept is None:
        return ["cut"] * len(tokens)
    there, weights = kept.tokens, kept.weight
    if reads_end:  # its last token is a copy, whose prediction stands where the reward is read
        there, weights = there[:-1], [*weights[1:-1], weights[-1]]
    begin = 0
    while begin < min(len(there), len(tokens)) and there[begin] == tokens[begin]:
        begin += 1
    lost = len(tokens) - len(there)
    found: list[Literal["learned", "read", "cut"]] = []
    for place in range(len(tokens)):
        if begin <= place < begin + lost:
            found.append("cut")
            continue
        at = place if place < begin else place - lost
        # Nothing predicts the first token of a sequence.
        found.append("learned" if weights[at] > 0 and (at > 0 or reads_end) else "read")
    return found
