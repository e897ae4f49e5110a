"""What the rows of a data set hold, and which format reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError
from luthier.core.registry import FORMATS, PAIR_FORMATS
from luthier.data.sources import REGISTRY_FILE, Row, Source, read_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luthier.core.types import Example, RowKind

_KEYS = (("messages", "openai"), ("conversations", "sharegpt"), ("instruction", "alpaca"), ("text", "text"))
_KEYS_OF_PAIRS = (*_KEYS[:3], ("prompt", "openai"))
MAX_COLUMNS_SHOWN = 8


def read_example(row: Mapping[str, Any], source: Source, kind: RowKind) -> Example:
    """Convert a row by the format that its source names, or that its columns tell. Raises RowError."""
    shelf = PAIR_FORMATS if kind == "pair" else FORMATS
    return shelf.get(_format_of(row, source, kind))(row, source.columns, source.tags)


def _format_of(row: Mapping[str, Any], source: Source, kind: RowKind) -> str:
    if kind == "text":
        return "text"
    if source.formatting != "auto":
        return source.formatting
    named = [name for key, name in (_KEYS_OF_PAIRS if kind == "pair" else _KEYS) if key in row]
    if named:
        return named[0]
    answer = row.get(source.columns.get("chosen", "chosen")) if kind == "pair" else None
    turn = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(turn, dict):
        return "alpaca"
    return "sharegpt" if "from" in turn else "openai"


def check_kind(sources: Sequence[Source], kind: RowKind) -> None:
    """Raise DataError when a data set holds pairs and something else is wanted, or the other way round."""
    for source in sources:
        first = next((row for row in read_rows(source) if row.value is not None), None)
        has_pairs = source.ranking if source.ranking is not None else _shows_pairs(first, source, kind)
        if has_pairs != (kind == "pair") and first is not None:
            raise DataError((_no_pairs if kind == "pair" else _pairs)(first, source, kind), code="data_kind")


def _shows_pairs(row: Row | None, source: Source, kind: RowKind) -> bool:
    """Tell by the columns; where pairs are wanted one of two is enough, so that the other one is named as missing."""
    there = [source.columns.get(name, name) in (row.value or {}) for name in ("chosen", "rejected")] if row else []
    return any(there) if kind == "pair" else bool(there) and all(there)


def _pairs(first: Row, source: Source, kind: RowKind) -> str:
    wanted = "single answers" if kind == "answer" else "plain text"
    if source.ranking:
        return (
            f"data set {source.name!r} is marked as preference rows (ranking: true), but this objective learns from "
            f"{wanted}; set stage: dpo, or name another data set"
        )
    return (
        f"data set {source.name!r} holds preference rows ({first.where} has a chosen and a rejected answer), but this "
        f"objective learns from {wanted}; set stage: dpo, or pairs: false to read the other columns only"
    )


def _no_pairs(first: Row, source: Source, kind: RowKind) -> str:
    there = ", ".join(list(map(str, first.value or {}))[:MAX_COLUMNS_SHOWN])
    found = f"data set {source.name!r} holds no preference rows ({first.where} has the columns {there})"
    if source.ranking is None:
        remedy = "map its columns (columns: {chosen: ..., rejected: ...})"
    else:
        found = f"data set {source.name!r} is not marked as preference rows"
        remedy = f"if each row has a chosen and a rejected answer, set ranking: true in {REGISTRY_FILE}, or pairs: true"
    return f"{found}, but this objective compares two answers to one prompt; {remedy}, or set stage: sft"
