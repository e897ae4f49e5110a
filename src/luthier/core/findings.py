"""What an audit finds in data: one record a finding, and the error a row reader raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from luthier.core.log import printable

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing about one row."""

    kind: str
    """Stable name, such as "missing_column"."""
    level: Level
    where: str
    """file:line."""
    message: str
    """What was expected, what was found, what to do."""
    row: int | None = None
    """Place of the row among all that were read, from 0 on."""

    def __str__(self) -> str:
        return f"{self.where} {self.message}"


class RowError(Exception):
    """A row cannot be trained on. Formats and templates raise it; the audit adds the place."""

    def __init__(self, kind: str, field: str, expected: str, found: object, remedy: str = "") -> None:
        shown = found if isinstance(found, _Words) else _described(found)
        advice = f"; {remedy}" if remedy else ""
        super().__init__(f"[{field}] expected {expected}, found {shown}{advice}")
        self.kind = kind


class _Words(str):
    """Text that is already fit to be printed."""


def words(text: str) -> str:
    """Mark `text` as our own words, which need no quotes."""
    return _Words(text)


def _described(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"text {printable(value)}" if value.strip() else "empty text"
    names: dict[type, str] = {
        bool: "a truth value",
        int: "the number",
        float: "the number",
        list: "a list",
        dict: "an object",
    }
    return f"{names.get(type(value), type(value).__name__)} {printable(value, 60)}"
