"""The application: which paths there are and what their replies look like."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from luthier.server.chat import answer_chat
from luthier.server.completions import answer_completion
from luthier.server.embeddings import answer_embedding
from luthier.server.errors import ApiError, ErrorReply, of_validation
from luthier.server.guard import Guard
from luthier.server.keys import Keys
from luthier.server.page import page_of
from luthier.server.replies import ChatReply, EmbeddingReply, Health, ModelCard, ModelList, TextReply
from luthier.server.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from luthier.server.service import Service

_ABOUT = {
    400: "A field is wrong, or cannot be honoured.",
    401: "No key, or an unknown one.",
    403: "Asked under a foreign name (Host, Origin).",
    404: "There is no such model.",
    408: "The body stopped coming.",
    413: "The body is too large.",
    429: "Every place is taken; Retry-After says when to ask again.",
    500: "The engine failed.",
    503: "The model is being loaded, or the server stops.",
    504: "The answer took too long.",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorReply, "description": _ABOUT[status]} for status in (401, 403, *statuses)}


_ASKED = _errors(400, 404, 408, 413, 429, 500, 503, 504)
_EVENT = {
    "type": "object",
    "description": "One event: a chunk of the answer as JSON text; the last one is [DONE], or an error.",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}
_STREAMED = {
    200: {
        "description": "The answer; with stream: true as server-sent events.",
        "content": {"text/event-stream": {"schema": _EVENT}},
    }
}


def make_app(service: Service, keys: Keys) -> FastAPI:
    """Return the application of a service."""

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(
        title="luthier",
        version=version("luthier"),
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    app.add_middleware(Guard, service=service, keys=keys)
    _handle_errors(app)
    _add_models(app, service)
    _add_state(app, service)
    _add_answers(app, service)
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def _(_request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def _(_request: Request, error: RequestValidationError) -> Response:
        return of_validation(error).response()

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ApiError):
            raise error.__cause__
        if error.status_code == 404:
            there = ", ".join(sorted(app.openapi()["paths"]))
            said = f"there is no {request.url.path} here; there are: {there}"
        elif error.status_code == 405:
            said = f"{request.url.path} does not take {request.method}"
        else:
            said = str(error.detail)
        return ApiError(error.status_code, said, headers=error.headers).response()


def _add_models(app: FastAPI, service: Service) -> None:
    def card(name: str) -> ModelCard:
        voice = service.voices.get(name)
        base = next((each for each, inside in service.plan.adapters.items() if inside is None), None)
        parent = base if service.plan.adapters[name] is not None else None
        context = voice.context if voice is not None else None
        return ModelCard(id=name, created=service.created, parent=parent, max_model_len=context)

    @app.get("/v1/models", responses=_errors(), summary="Models that answer here")
    async def list_models() -> ModelList:
        return ModelList(data=[card(name) for name in service.plan.adapters])

    @app.get("/v1/models/{model}", responses=_errors(404), summary="One model")
    async def show_model(model: str) -> ModelCard:
        service.check_name(model)
        return card(model)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses=_errors(), summary="Whether the server is alive")
    async def health() -> Health:
        return Health(status="alive")

    @app.get("/ready", responses=_errors(503), summary="Whether the model answers")
    async def ready() -> Health:
        service.ready()
        return Health(status="ready")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return HTMLResponse(page_of(app.openapi()), headers={"content-security-policy": policy})

    @app.get(
        "/metrics",
        summary="Numbers for Prometheus",
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Text form 0.0.4."},
            **_errors(),
        },
    )
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _replied(found: Any) -> Response:
    """Return a stream as it is, and a reply with its headers as JSON."""
    if isinstance(found, Response):
        return found
    reply, headers = found
    return Response(reply.model_dump_json(), media_type="application/json", headers=headers)


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/chat/completions",
        responses={**_STREAMED, **_ASKED},
        response_model=ChatReply,
        summary="Answer a conversation",
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        return _replied(await answer_chat(service, body, request))

    @app.post(
        "/v1/completions", responses={**_STREAMED, **_ASKED}, response_model=TextReply, summary="Go on with texts"
    )
    async def complete(body: CompletionRequest, request: Request) -> Response:
        return _replied(await answer_completion(service, body, request))

    @app.post("/v1/embeddings", responses=_ASKED, response_model=EmbeddingReply, summary="Vectors of texts")
    async def embed(body: EmbeddingRequest, request: Request) -> Response:
        return _replied(await answer_embedding(service, body, request))
