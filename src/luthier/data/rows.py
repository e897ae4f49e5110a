"""What the rows of a data set hold, and which format reads them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError
from luthier.core.findings import RowError, words
from luthier.core.registry import FORMATS, PAIR_FORMATS, PROMPT_FORMATS
from luthier.data.registry_file import REGISTRY_FILE
from luthier.data.sources import Row, Source, read_rows
from luthier.data.turns import missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from luthier.core.registry import Registry
    from luthier.core.types import Example, RowKind

_KEYS = (("messages", "openai"), ("conversations", "sharegpt"), ("instruction", "alpaca"))
_MORE_KEYS: dict[RowKind, tuple[tuple[str, str], ...]] = {
    "answer": (("completion", "openai"), ("text", "text")),
    "tagged": (("completion", "openai"),),
    "pair": (("prompt", "openai"),),
    "prompt": (("prompt", "openai"),),
}
"""Columns that tell a format, in this order, behind those that tell one for every kind."""
_SHELVES: dict[RowKind, Registry[Any]] = {"pair": PAIR_FORMATS, "prompt": PROMPT_FORMATS}
_TRUTHS: dict[object, bool] = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
"""What a tag may be, 1 and 0 included; text comes from files without types."""
_WANTED: dict[RowKind, str] = {"answer": "single answers", "text": "plain text"}
MAX_COLUMNS_SHOWN = 8


def read_example(row: Mapping[str, Any], source: Source, kind: RowKind) -> Example:
    """Convert a row by the format that its source names, or that its columns tell. Raises RowError.

    A row of kind "tagged" may also hold a chosen and a rejected answer; then the example has both, and no tag.
    """
    _refuse_media(row, source)
    if kind == "tagged":
        return _tagged(row, source)
    return _SHELVES.get(kind, FORMATS).get(format_of(row, source, kind))(row, source.columns, source.tags)


def _refuse_media(row: Mapping[str, Any], source: Source) -> None:
    for role in ("images", "videos", "audios"):
        name = source.columns.get(role, role)
        if row.get(name):
            remedy = "luthier trains text models: take the row out, or set bad_rows: skip"
            raise RowError("multimodal", name, "no pictures, films or sounds", row[name], remedy)


def _tagged(row: Mapping[str, Any], source: Source) -> Example:
    if _is_pair(row, source):
        return read_example(row, source, "pair")
    name = _tag_column(row, source)
    if name not in row:
        raise missing(row, name, "kto_tag")
    if _truth(row[name]) is None:
        remedy = "write true for good answers and false for bad ones, or set bad_rows: skip"
        raise RowError("wrong_type", name, "true or false", row[name], remedy)
    example = FORMATS.get(format_of(row, source, "tagged"))(row, source.columns, source.tags)
    if example.text is not None:
        raise RowError("wrong_type", "formatting", "a format with prompts and answers", words("plain text"))
    return replace(example, desirable=_truth(row[name]))


def _is_pair(row: Mapping[str, Any], source: Source) -> bool:
    if source.ranking is not None:
        return source.ranking
    return _tag_column(row, source) not in row and _has_both(row, source, all)


def _has_both(row: Mapping[str, Any], source: Source, how: Any) -> bool:
    return how(source.columns.get(name, name) in row for name in ("chosen", "rejected"))


def _tag_column(row: Mapping[str, Any], source: Source) -> str:
    """Return where the tag of an answer stands: as the settings say, as in LLaMA-Factory, or as in TRL."""
    return source.columns.get("kto_tag") or ("label" if "label" in row and "kto_tag" not in row else "kto_tag")


def _truth(value: object) -> bool | None:
    if isinstance(value, str):
        value = value.strip().lower()
    return _TRUTHS.get(value) if isinstance(value, (bool, int, str)) else None


def shows_undesirable(row: Mapping[str, Any], source: Source) -> bool:
    """Tell whether a row that is read as an answer is tagged as a bad one; a mere "label" may mean anything."""
    name = _tag_column(row, source)
    is_tag = name != "label" or "label" in source.columns.values() or "completion" in row
    return is_tag and _truth(row.get(name)) is False


def margin_of(row: Mapping[str, Any], source: Source) -> float:
    """Return by how much the chosen answer should be ahead, 0 where the row does not say. Raises RowError."""
    name = source.columns.get("margin", "margin")
    value = row.get(name)
    if value is None:
        return 0.0
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin):
        remedy = "write one, or map another column: columns: {margin: ...}"
        raise RowError("wrong_type", name, "a finite number", value, remedy)
    return margin


def format_of(row: Mapping[str, Any], source: Source, kind: RowKind) -> str:
    """Return the format of a row: as its source names it, or as its columns tell."""
    if kind == "text":
        return "text"
    if source.formatting != "auto":
        return source.formatting
    # Columns of these roles are mapped for alpaca rows only.
    is_alpaca = bool(source.columns.keys() & {"query", "response", "history"})
    keys = (*_KEYS, *_MORE_KEYS[kind])
    named = [name for key, name in keys if key in row and not (key == "completion" and is_alpaca)]
    if named:
        return named[0]
    answer = row.get(source.columns.get("chosen", "chosen")) if kind == "pair" else None
    turn = answer[0] if isinstance(answer, list) and answer else answer
    if not isinstance(turn, dict):
        return "alpaca"
    return "sharegpt" if "from" in turn else "openai"


def check_kind(sources: Sequence[Source], kind: RowKind) -> None:
    """Raise DataError when the rows of a data set are not what is wanted; any row holds a prompt."""
    for source in sources:
        check_kind_of(read_rows(source), source, kind)


def check_kind_of(rows: Iterable[Row], source: Source, kind: RowKind) -> None:
    """Raise DataError when the first good row of a data set is not what is wanted."""
    first = next((row for row in rows if row.value is not None), None)
    if first is None or first.value is None or kind == "prompt":
        return
    # Where pairs are wanted one of two columns is enough, so that the other one is named as missing.
    shown = _has_both(first.value, source, any if kind == "pair" else all)
    has_pairs = shown if source.ranking is None else source.ranking
    if kind == "tagged":
        problem = None if has_pairs or _tag_column(first.value, source) in first.value else _no_tags(first, source)
    elif has_pairs == (kind == "pair"):
        problem = None
    else:
        problem = _no_pairs(first, source) if kind == "pair" else _pairs(first, source, kind)
    if problem is not None:
        raise DataError(problem, code="data_kind")


def _pairs(first: Row, source: Source, kind: RowKind) -> str:
    wanted = _WANTED[kind]
    if source.ranking:
        return (
            f"data set {source.name!r} is marked as preference rows (ranking: true), but this objective learns from "
            f"{wanted}; set stage: dpo, or name another data set"
        )
    return (
        f"data set {source.name!r} holds preference rows ({first.where} has a chosen and a rejected answer), but this "
        f"objective learns from {wanted}; set stage: dpo, or pairs: false to read the other columns only"
    )


def _columns(row: Row) -> str:
    return ", ".join(list(map(str, row.value or {}))[:MAX_COLUMNS_SHOWN])


def _no_pairs(first: Row, source: Source) -> str:
    found = f"data set {source.name!r} holds no preference rows ({first.where} has the columns {_columns(first)})"
    if _tag_column(first.value or {}, source) in (first.value or {}):
        remedy = "its answers are tagged one by one: set stage: kto, which learns from such rows"
    elif source.ranking is None:
        remedy = "map its columns (columns: {chosen: ..., rejected: ...})"
    else:
        found = f"data set {source.name!r} is not marked as preference rows"
        remedy = f"if each row has a chosen and a rejected answer, set ranking: true in {REGISTRY_FILE}, or pairs: true"
    return f"{found}, but this objective compares two answers to one prompt; {remedy}, or set stage: sft"


def _no_tags(first: Row, source: Source) -> str:
    return (
        f"data set {source.name!r} holds no answers that are tagged good or bad ({first.where} has the columns "
        f"{_columns(first)}); map the column of true and false (columns: {{kto_tag: ...}}), or mark rows with a chosen "
        f"and a rejected answer (ranking: true in {REGISTRY_FILE}, or pairs: true), or set stage: sft"
    )
