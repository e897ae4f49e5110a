"""Models that answer: each in a process of its own, asked through here so that its key never reaches a page."""

from __future__ import annotations

import asyncio
import itertools
import json
import shlex
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response  # noqa: TC002  read by fastapi

from luthier.core.errors import LuthierError
from luthier.core.masking import mask_text
from luthier.runs.job_files import ACTIVE
from luthier.server.ui.failures import Refused, missing
from luthier.server.ui.job_specs import KEY
from luthier.server.ui.shapes.data import TokenPiece, TokenSegment
from luthier.server.ui.shapes.models import PromptAsked, Serving, Servings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import ModuleType

    from httpx import AsyncClient

    from luthier.runs.job_view import JobView
    from luthier.server.ui.state import State

PROMPT_SECONDS = 60.0
MOST_ENDED = 10
_FAILED = ("failed", "crashed")


def _pass_on() -> ModuleType:
    """Return the module that asks processes; loaded at the first question, so that the page is there sooner."""
    return import_module("luthier.server.ui.pass_on")


async def list_servings(state: State) -> Servings:
    """Return the jobs that serve: those that run, then the last ones that ended."""
    jobs = [job for job in await to_thread.run_sync(state.jobs.all) if job.kind == "serve"]
    running = [job for job in jobs if job.state in ACTIVE]
    waiting = [job for job in jobs if job.state in ("held", "queued")]
    ended = [job for job in jobs if job not in running and job not in waiting][:MOST_ENDED]
    found = await asyncio.gather(*(_running(state, job) for job in running))
    return Servings(servings=[*found, *map(_waiting, waiting), *map(_ended, ended)])


async def _running(state: State, job: JobView) -> Serving:
    shown = Serving(job=job.id, name=job.name, state="starting", models=[], doing=job.doing)
    try:
        address, headers = _door(state, job.id)
    except LuthierError:
        return shown  # it ends just now
    found = await _pass_on().look(address, headers)
    if found is None:
        return shown
    cards, is_ready, said = found
    shown.models = [str(card["id"]) for card in cards]
    shown.context = next((card.get("max_model_len") for card in cards), None)
    if is_ready:
        shown.state, shown.doing = "ready", ""
        shown.curl = _curl(state, job.id, address, shown.models[0])
    else:
        shown.doing = said or shown.doing
    return shown


def _waiting(job: JobView) -> Serving:
    return Serving(job=job.id, name=job.name, state="starting", models=[], doing=mask_text(job.reason))


def _ended(job: JobView) -> Serving:
    failed = job.state in _FAILED
    said = str((job.error or {}).get("message") or job.reason or (job.log_tail[-1] if job.log_tail else ""))
    return Serving(
        job=job.id,
        name=job.name,
        state="failed" if failed else "stopped",
        models=[],
        problem=mask_text(said) if failed else "",
    )


def _curl(state: State, job: str, address: str, model: str) -> str:
    """Return a command that asks past the page; the key is read from its file when the command runs."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    key = shlex.quote(str(state.jobs.path(job) / KEY))
    return (
        f"curl {address}/v1/chat/completions -H 'Content-Type: application/json' "
        f'-H "Authorization: Bearer $(cat {key})" -d {shlex.quote(body)}'
    )


def _door(state: State, job: str) -> tuple[str, dict[str, str]]:
    """Return address and key of a process that serves. Raises Refused where there is none."""
    try:
        view, port = state.jobs.get(job), state.jobs.port(job)
        key = (state.jobs.path(job) / KEY).read_text(encoding="utf-8").strip()
    except OSError:
        raise missing("model at work", job) from None
    if view.kind != "serve" or view.state not in ACTIVE or port is None:
        raise Refused(409, "serving_not_ready", f"{view.name or job} does not answer: it is {view.state}")
    return f"http://127.0.0.1:{port}", {"authorization": f"Bearer {key}"}


def prompt_of(state: State, job: str, asked: PromptAsked) -> TokenSegment:
    """Return the exact tokens that a model is given for a conversation."""
    view = state.jobs.get(job)
    if view.kind != "serve":
        raise missing("model at work", job)
    command = json.loads((state.jobs.path(job) / "job.json").read_text(encoding="utf-8"))["command"]
    source, overrides, adapters = parts_of(command)
    found = state.worker.ask(
        "prompt",
        PROMPT_SECONDS,
        source=adapters.get(asked.model, source),
        overrides=overrides,
        messages=[turn.model_dump() for turn in asked.messages],
    )
    pieces = [TokenPiece(**piece) for piece in found["pieces"]]
    return TokenSegment(name="", pieces=pieces, learned=0, read=len(pieces), cut=0)


def parts_of(command: list[str]) -> tuple[str, list[str], dict[str, str]]:
    """Return model, settings and adapters of a `serve` command; how it listens is left out.

    >>> parts_of(["python", "-m", "luthier", "serve", "m", "top_p=1", "--adapter", "a=runs/a", "serve.port=1"])
    ('m', ['top_p=1'], {'a': 'runs/a'})
    """
    source, *rest = command[command.index("serve") + 1 :]
    adapters = [value for flag, value in itertools.pairwise(rest) if flag == "--adapter"]
    settings = [text for text in rest if "=" in text and not text.startswith("serve.") and text not in adapters]
    return source, settings, dict(text.split("=", 1) for text in adapters)


def routes(state: State) -> APIRouter:
    """List models that answer, and ask them."""
    clients: list[AsyncClient] = []

    async def ask(job: str, path: str, request: Request) -> Response:
        address, headers = await to_thread.run_sync(_door, state, job)
        if not clients:
            clients.append(_pass_on().new_client())
        return await _pass_on().forward(clients[0], f"{address}{path}", headers, request)

    @asynccontextmanager
    async def life(_: Any) -> AsyncGenerator[None]:
        yield
        for client in clients:
            await client.aclose()

    router = APIRouter(tags=["serving"], prefix="/serving", lifespan=life)

    @router.get("", summary="Models that answer")
    async def every() -> Servings:
        return await list_servings(state)

    @router.post(
        "/{job}/v1/chat/completions", summary="Ask in OpenAI's form; streamed as it comes", response_model=None
    )
    async def chat(job: str, request: Request) -> Response:
        return await ask(job, "/v1/chat/completions", request)

    @router.post("/{job}/v1/completions", summary="Go on with a text, in OpenAI's form", response_model=None)
    async def complete(job: str, request: Request) -> Response:
        return await ask(job, "/v1/completions", request)

    @router.get("/{job}/v1/models", summary="What a process answers as", response_model=None)
    async def models(job: str, request: Request) -> Response:
        return await ask(job, "/v1/models", request)

    @router.post("/{job}/tokens", summary="The exact tokens that the model is given for a conversation")
    def tokens(job: str, body: PromptAsked) -> TokenSegment:
        return prompt_of(state, job, body)

    return router
