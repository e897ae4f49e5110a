"""Streams of events to pages: they end when the reader is gone, takes nothing, or the server ends."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from luthier.core.log import logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

SEND_SECONDS = 30.0
"""A reader that takes nothing for this long is given up."""
ALIVE_SECONDS = 15.0
"""A comment is sent where there was nothing for this long."""
ALIVE = b": still there\n\n"
BEGIN = b"retry: 2000\n\n"


def event(data: Any, name: str = "") -> bytes:
    """Return one event with JSON as its data."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), default=str)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


class EventStream(Response):
    """Sends what an iterator gives."""

    def __init__(self, parts: AsyncIterator[bytes]) -> None:
        self._parts = parts
        self.status_code, self.background = 200, None
        self.init_headers({"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store",
                           "x-accel-buffering": "no"})  # fmt: skip
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end of either side."""
        del scope
        tasks = {asyncio.create_task(self._send(send)), asyncio.create_task(_gone(receive))}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for found in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(found, Exception) and not isinstance(found, TimeoutError):
                    logger.error("a stream broke: %s: %s", type(found).__name__, found)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for part in self._parts:
            async with asyncio.timeout(SEND_SECONDS):
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
