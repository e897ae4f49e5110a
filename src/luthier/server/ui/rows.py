"""Rows of a data set as they stand in its file, page by page."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query

from luthier.server.ui.sets import find_set
from luthier.server.ui.shapes.data import Column, RowPage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luthier.data.row_index import RowFile, StoredRow
    from luthier.server.ui.state import State

MOST_ROWS = 500
WAIT_SECONDS = 0.3
"""A page waits so long for the index of a file, so that small files have their total at once."""
FAR_SECONDS = 60.0
"""A page far into a file waits for the index instead of reading all that lies before it."""
FAR_ROWS = 20_000
SEARCH_SECONDS = 2.0
CELL_CHARACTERS = 20_000
"""Longer texts are cut for display."""
PAGE_CHARACTERS = 2_000_000
"""So much text is shown of a page; what is too much for it is cut shorter."""
MOST_ITEMS = 1000
_DEEPEST = 40
_SAFE_INTEGER = 1 << 53
COLUMN_ROWS = 200


def shortened(value: Any, most: int = CELL_CHARACTERS, depth: int = 0) -> Any:
    """Return a value fit to be sent and shown: long texts and lists cut, and nothing that JSON lacks.

    >>> shortened({"a": "abcdef", "b": float("nan"), "c": 1 << 60}, 3)
    {'a': 'abc… (6 characters)', 'b': 'NaN', 'c': '115… (19 characters)'}
    """
    if isinstance(value, str):
        safe = value.encode("utf-8", "backslashreplace").decode() if not value.isascii() else value
        return safe if len(safe) <= most else f"{safe[:most]}… ({len(value)} characters)"
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) < _SAFE_INTEGER else shortened(_digits(value), most)
    if isinstance(value, float):
        return value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    if depth >= _DEEPEST and isinstance(value, dict | list | tuple):
        return "…"
    if isinstance(value, dict):
        items = list(value.items())[:MOST_ITEMS]
        return {shortened(str(key), 200): shortened(inner, most, depth + 1) for key, inner in items}
    if isinstance(value, list | tuple):
        shown = [shortened(inner, most, depth + 1) for inner in value[:MOST_ITEMS]]
        return [*shown, f"… ({len(value)} items)"] if len(value) > MOST_ITEMS else shown
    return shortened(str(value), most)


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:  # Python refuses to write numbers of more than 4300 digits
        return hex(value)


def page(file: RowFile, start: int, count: int, search: str = "") -> RowPage:
    """Return rows from `start` on; with `search` those that hold a text. One row at a time is whole in memory."""
    file.wait(FAR_SECONDS if start > FAR_ROWS else WAIT_SECONDS)
    places, stopped, columns = range(start, start + count), None, Columns()
    rows = file.each(start, count)
    if search:
        places, stopped = file.find(search, start, count, SEARCH_SECONDS)
        rows = (row for place in places for row in file.each(place, 1))
    elif file.total is not None:
        places = range(start, min(start + count, file.total))
    most = min(CELL_CHARACTERS, PAGE_CHARACTERS // max(1, len(places)))
    lines, shown, problems = list[int](), list[Any](), dict[int, str]()
    for row in rows:
        columns.add(row)
        problems |= {len(shown): row.broken} if row.broken else {}
        lines.append(row.line)
        shown.append(shortened(row.value, most))
    return RowPage(
        start=start,
        rows=shown,
        lines=lines,
        total=file.total,
        columns=columns_of(file.each(0, COLUMN_ROWS)) if start or search else columns.found(),
        broken=list(problems),
        problems=list(problems.values()),
        places=list(places[: len(shown)]),
        stopped=stopped,
    )


class Columns:
    """Columns of rows, in the order in which they occur, with kinds of values and how many are filled."""

    def __init__(self) -> None:
        self._kinds: dict[str, Counter[str]] = {}
        self._filled: Counter[str] = Counter()
        self._rows = 0

    def add(self, row: StoredRow) -> None:
        """Count a row; one that is broken has no columns."""
        if row.broken:
            return
        self._rows += 1
        for name, value in list(row.value.items())[:MOST_ITEMS]:
            self._kinds.setdefault(str(name), Counter())[_kind(value)] += 1
            self._filled[str(name)] += value not in (None, "", [], {})

    def found(self) -> list[Column]:
        """Return what was counted."""
        return [
            Column(name=shortened(name, 200), types=dict(types), filled=self._filled[name] / self._rows)
            for name, types in self._kinds.items()
        ]


def columns_of(rows: Iterable[StoredRow]) -> list[Column]:
    """Return the columns of rows."""
    columns = Columns()
    for row in rows:
        columns.add(row)
    return columns.found()


_KINDS: dict[type, str] = {
    str: "text", bool: "truth", int: "number", float: "number", list: "list", dict: "object", type(None): "null"
}  # fmt: skip


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), type(value).__name__)


def routes(state: State) -> APIRouter:
    """Show rows."""
    router = APIRouter(tags=["data"], prefix="/data")

    @router.get("/rows", summary="Rows of a data set, from any place; with `search` those that hold a text")
    def rows(
        dataset: str,
        folder: str,
        start: Annotated[int, Query(ge=0)] = 0,
        count: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 100,
        search: Annotated[str, Query(max_length=1000)] = "",
    ) -> RowPage:
        return page(find_set(state.roots, dataset, folder).rows(), start, count, search)

    return router
