"""What happens in a run, as a stream that goes on where a page left it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response

from luthier.runs.store import read_status
from luthier.server.ui.failures import Refused
from luthier.server.ui.run_detail import folder_of
from luthier.server.ui.sse import EventStream
from luthier.server.ui.tails import ENDED, Tails, place_behind, prepared, read_part

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.server.ui.state import State

_MOST_DIGITS = 18


def routes(state: State) -> APIRouter:
    """Return the stream of each run."""
    router, tails = APIRouter(tags=["runs"]), Tails()

    @router.get("/runs/{id}/events", summary="What happens in a run, as server-sent events", response_class=Response)
    async def events(id: str, request: Request, after: str = "0") -> Response:
        run = folder_of(state, id)
        number = _number(request.headers.get("last-event-id") or after)
        offset, done = await asyncio.to_thread(_place, run, number)
        if done:
            return Response(status_code=204)
        return EventStream(tails.follow(run, offset, state.closing, partial(_is_known, state, id)))

    return router


def _is_known(state: State, id: str) -> bool:
    return state.index.row(id) is not None


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > _MOST_DIGITS:
        raise Refused(400, "event_number", "the number of an event has digits only", field="after")
    return int(text)


def _place(run: Path, after: int) -> tuple[int, bool]:
    """Return where to go on, and whether the run has ended and all of it is known."""
    path = run / "events.jsonl"
    ended = read_status(run).get("state") in ENDED
    offset = place_behind(path, after)
    return offset, ended and not _has_more(path, offset)


def _has_more(path: Path, offset: int) -> bool:
    """Tell whether an event stands behind a byte; damaged lines are none."""
    while True:
        lines, end = read_part(path, offset)
        if any(prepared(line) for _, line in lines):
            return True
        if end == offset:
            return False
        offset = end
