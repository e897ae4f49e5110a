"""Rows as training sees them: each token, whether it is learned, read, or cut off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from luthier.config.load import dump
from luthier.server.ui.failures import Refused
from luthier.server.ui.sets import find_set
from luthier.server.ui.settings import read_settings
from luthier.server.ui.shapes.data import TokenPiece, TokenRow, TokenRows, TokensAsked, TokenSegment

if TYPE_CHECKING:
    from luthier.server.ui.state import State

MOST_ROWS = 20
TOKEN_SECONDS = 120.0
MOST_PIECES = 20_000
"""Of a sequence; what lies behind is counted and not shown."""


def tokens_of(state: State, asked: TokensAsked) -> TokenRows:
    """Return rows of a data set under the settings of a training. Raises Refused, LuthierError."""
    if not asked.rows or len(asked.rows) > MOST_ROWS or min(asked.rows) < 0:
        raise Refused(422, "request_field", f"rows: 1 to {MOST_ROWS} places from 0 on", field="rows")
    found = find_set(state.roots, asked.dataset, asked.folder)
    name = found.name if found.entry is not None else str(found.path)
    data = {**asked.values.get("data", {}), "dataset": [name], "dataset_dir": str(found.folder), "eval_dataset": []}
    values = {**asked.values, "data": data}
    loaded = read_settings(state.roots, values=values, allow_remote_code=state.allow_remote_code)
    found.rows().wait(TOKEN_SECONDS)
    answer = state.worker.ask(
        "tokens", TOKEN_SECONDS, values=dump(loaded.config), rows=asked.rows, roots=state.roots.as_dict()
    )
    return TokenRows(
        rows=[_row(each) for each in answer["rows"]], template=answer["template"], notices=answer["notices"]
    )


def _row(plain: dict[str, Any]) -> TokenRow:
    segments = [_segment(each) for each in plain["segments"]]
    return TokenRow(row=plain["row"], where=plain["where"], segments=segments, problem=plain["problem"])


def _segment(plain: dict[str, Any]) -> TokenSegment:
    kinds = [piece["kind"] for piece in plain["pieces"]]
    return TokenSegment(
        name=plain["name"],
        pieces=[TokenPiece(**piece) for piece in plain["pieces"][:MOST_PIECES]],
        learned=kinds.count("learned"),
        read=kinds.count("read"),
        cut=kinds.count("cut"),
    )


def routes(state: State) -> APIRouter:
    """Show tokens."""
    router = APIRouter(tags=["data"], prefix="/data")

    @router.post("/tokens", summary="Rows as training sees them: tokens that are learned, read, or cut")
    def tokens(body: TokensAsked) -> TokenRows:
        return tokens_of(state, body)

    return router
