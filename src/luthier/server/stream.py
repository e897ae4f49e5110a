"""Server-sent events: one chunk a line, `[DONE]` at the end, an error as the last chunk when something failed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from luthier.core.log import logger
from luthier.server.errors import ApiError
from luthier.server.inbox import ClientGone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from starlette.types import Receive, Scope, Send

    from luthier.server.job import Job

SEND_SECONDS = 30.0
"""A reader that takes nothing for this long is given up."""
ALIVE = b": still there\n\n"
DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """Return one event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Sends events while a job runs, and closes the job in every case."""

    def __init__(self, job: Job | None, events: AsyncIterator[bytes], headers: Mapping[str, str]) -> None:
        self.job, self.events = job, events
        self.status_code, self.background = 200, None
        self.init_headers({"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store",
                           "x-accel-buffering": "no", **headers})  # fmt: skip
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; a connection that is gone ends it without a word."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for part in self._parts():
                async with asyncio.timeout(SEND_SECONDS):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                # Sending does not wait as a rule; other connections get their turn all the same.
                await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (ClientGone, TimeoutError):
            pass
        finally:
            if self.job is not None:
                self.job.close()

    async def _parts(self) -> AsyncIterator[bytes]:
        try:
            async for part in self.events:
                yield part
            yield DONE
        except ApiError as error:
            # Without `[DONE]`: what a client has so far is not the whole answer.
            yield event(error.body)
        except ClientGone:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the client is told
            logger.exception("a stream broke")
            yield event(ApiError(500, f"the answer broke off: {type(error).__name__}").body)
