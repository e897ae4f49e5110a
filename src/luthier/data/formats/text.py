"""Plain text rows, for pretraining."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.registry import FORMATS
from luthier.core.types import Example
from luthier.data.turns import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

COLUMNS = ("text", "content", "instruction", "prompt")


@FORMATS.register("text")
def text(row: Mapping[str, object], columns: Mapping[str, str], tags: Mapping[str, str]) -> Example:
    """Take the text column: `columns.prompt`, or the first of the usual names that the row has."""
    column = columns.get("prompt") or columns.get("text") or next((name for name in COLUMNS if name in row), "text")
    return Example(text=text_of(row, column, "prompt"))
