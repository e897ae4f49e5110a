"""A copy of a data set without the rows that its audit found fault with: shown first, then written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fastapi import APIRouter

from luthier.core.errors import DataError
from luthier.data.clean import clean
from luthier.server.ui.failures import Refused
from luthier.server.ui.rows import shortened
from luthier.server.ui.sets import find_set
from luthier.server.ui.shapes.data import CleanAsked, CleanPreview
from luthier.server.ui.uploads import check_room, slug_of

if TYPE_CHECKING:
    from luthier.server.ui.state import State

_CELL = 300
_STATUS = {"data_exists": 409, "data_no_audit": 409}


def cleaned(state: State, asked: CleanAsked, *, dry_run: bool) -> CleanPreview:
    """Return what a copy would leave out; without `dry_run` write it beside the file, which stays as it is."""
    found = find_set(state.roots, asked.dataset, asked.folder)
    path, out = found.path, None
    if not dry_run:
        name = asked.name if asked.name.lower().endswith(path.suffix) else f"{asked.name}{path.suffix}"
        out = state.roots.inside(path.parent / slug_of(name), "data")
        if not os.access(path.parent, os.W_OK):
            raise Refused(403, "data_read_only", f"{path.parent} cannot be written to; upload the file, and clean that")
        check_room(path.parent, path.stat().st_size)
    try:
        result = clean(path, asked.drop, out, opener=state.roots.open_data, open_folder=state.roots.open_folder)
    except DataError as error:
        if error.code in _STATUS:
            raise Refused(_STATUS[error.code], error.code, str(error)) from error
        raise
    return CleanPreview(
        before=result.before,
        after=result.after,
        dropped=result.dropped,
        examples=[{**each, "row": shortened(each["row"], _CELL)} for each in result.examples],
        written=out.name if out is not None else None,
    )


def routes(state: State) -> APIRouter:
    """Show and write copies."""
    router = APIRouter(tags=["data"], prefix="/data")

    @router.post("/clean", summary="Copy a file without rows that have findings; dry_run only shows what would go")
    def clean_rows(body: CleanAsked, *, dry_run: bool = True) -> CleanPreview:
        return cleaned(state, body, dry_run=dry_run)

    return router
