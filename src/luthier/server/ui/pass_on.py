"""Questions to processes that answer, passed on and back byte by byte. httpx takes a while to load: see `serving`."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
from starlette.responses import JSONResponse, Response, StreamingResponse

from luthier.core.log import printable
from luthier.server.ui.failures import Refused
from luthier.server.ui.said import said, said_within

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from fastapi import Request

LOOK_SECONDS = 2.0
CONNECT_SECONDS = 5.0
LEFT = 499
"""Status of a reply that nobody reads: whoever asked has gone."""
SAID = frozenset({"message"})
"""Parts of an error that are for people."""
PASSED_ON = ("content-type", "retry-after", "x-should-retry", "x-request-id", "x-luthier-ignored")


def new_client() -> httpx.AsyncClient:
    """Return a client for answers of any length, as many at once as are asked for."""
    timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
    return httpx.AsyncClient(timeout=timeout, trust_env=False, limits=httpx.Limits(max_connections=None))


async def look(address: str, headers: dict[str, str]) -> tuple[list[dict[str, Any]], bool, str] | None:
    """Return the models of a process, whether it is ready, and what it says; None where it does not listen."""
    try:
        async with httpx.AsyncClient(timeout=LOOK_SECONDS, trust_env=False) as client:
            ready = await client.get(f"{address}/ready", headers=headers)
            listed = await client.get(f"{address}/v1/models", headers=headers)
        return listed.json()["data"], ready.status_code == httpx.codes.OK, _message_of(ready)
    except (httpx.HTTPError, ValueError, KeyError):
        return None


def _message_of(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


async def forward(client: httpx.AsyncClient, address: str, headers: dict[str, str], request: Request) -> Response:
    """Pass a request on and its reply back, byte by byte as it comes; when the asker leaves, the answer ends, too."""
    for name in ("content-type", "accept", "x-request-id"):
        if name in request.headers:
            headers[name] = request.headers[name]
    asked = client.build_request(request.method, address, headers=headers, content=await request.body())
    sending = asyncio.ensure_future(client.send(asked, stream=True))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():
            return Response(status_code=LEFT)
        reply = sending.result()
    except httpx.HTTPError as error:
        raise Refused(503, "serving_away", f"the model does not answer: {printable(error, 200)}") from error
    finally:
        leaving.cancel()
        if not sending.done():
            sending.cancel()
    kept = {name: value for name, value in reply.headers.items() if name in PASSED_ON}
    if reply.is_error:
        return await _refusal(reply, kept)
    return StreamingResponse(_bytes(reply), reply.status_code, {**kept, "cache-control": "no-store"})


async def _refusal(reply: httpx.Response, kept: dict[str, str]) -> Response:
    """Return a reply that is no success, what it says in the language of the request."""
    try:
        text = await reply.aread()
    except httpx.HTTPError as error:
        raise Refused(503, "serving_away", f"the model does not answer: {printable(error, 200)}") from error
    finally:
        await reply.aclose()
    try:
        body: Any = said_within(json.loads(text), SAID)
    except ValueError:
        return Response(text, reply.status_code, {**kept, "cache-control": "no-store"})
    kept.pop("content-type", None)
    return JSONResponse(body, reply.status_code, {**kept, "cache-control": "no-store"})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _bytes(reply: httpx.Response) -> AsyncGenerator[bytes]:
    try:
        async for chunk in reply.aiter_raw():
            yield chunk
    except httpx.HTTPError as error:
        yield _broken(error)
    finally:
        await reply.aclose()


def _broken(error: Exception) -> bytes:
    """Return what tells a reader of events that the answer is not whole."""
    message = said(f"the model ended in the middle: {printable(error, 200)}")
    told = {"message": message, "type": "server_error",
            "param": None, "code": "serving_away"}  # fmt: skip
    return f"data: {json.dumps({'error': told})}\n\n".encode()
