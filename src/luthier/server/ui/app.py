"""The application of the page: the routes of every area below /api, and the page itself."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from luthier.core.errors import LuthierError
from luthier.core.log import logger, printable
from luthier.server.ui import (
    audits,
    changes,
    clean,
    compare,
    configs,
    data,
    evaluations,
    events,
    files,
    form,
    jobs,
    machine,
    models,
    presets,
    rows,
    runs,
    serving,
    session,
    tokens,
    uploads,
)
from luthier.server.ui.failures import Refused, leaves_unread, of_error, of_system, of_validation
from luthier.server.ui.guard import Guard
from luthier.server.ui.static import PAGE, Static

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from luthier.server.ui.state import State

AREAS = (
    session,
    machine,
    runs,
    compare,
    evaluations,
    events,
    files,
    jobs,
    changes,
    form,
    configs,
    presets,
    models,
    data,
    uploads,
    rows,
    audits,
    tokens,
    clean,
    serving,
)
"""Modules beside this one that have routes."""


def make_app(state: State) -> FastAPI:
    """Return the application of a server."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        state.begin()
        yield
        state.close()

    app = FastAPI(
        title="luthier ui",
        version=version("luthier"),
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    app.add_middleware(Guard, state=state)
    app.router.default = Static(PAGE)
    _handle_errors(app)
    for area in AREAS:
        app.include_router(area.routes(state), prefix="/api")

    @app.get("/api/health", summary="Whether the server is alive")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(LuthierError)
    async def _(_request: Request, error: LuthierError) -> Response:
        if leaves_unread(error):
            raise error
        return of_error(error)

    @app.exception_handler(OSError)
    async def _(_request: Request, error: OSError) -> Response:
        logger.warning("%s: %s", type(error).__name__, printable(error, 300))
        return of_error(of_system(error))

    @app.exception_handler(RequestValidationError)
    async def _(_request: Request, error: RequestValidationError) -> Response:
        return of_validation(error)

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, LuthierError):
            raise error.__cause__
        said = {
            404: f"there is nothing at {printable(request.url.path)}; /api/openapi.json lists what is there",
            405: f"{printable(request.url.path)} does not take {printable(request.method)}",
        }.get(error.status_code, printable(error.detail, 200).strip("'"))
        return of_error(Refused(error.status_code, f"http_{error.status_code}", said, headers=error.headers))
