"""One request in the engine: its prompts, the pieces that come back, and the many ways in which it may end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.errors import LuthierError
from luthier.core.types import Prompt, Sampling
from luthier.engines.shaping import Shaping
from luthier.server.errors import DO_NOT_RETRY, ApiError
from luthier.server.inbox import ClientGone, Inbox
from luthier.server.replies import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Receive

    from luthier.engines.requests import Request
    from luthier.engines.shaping import Piece
    from luthier.server.service import Service
    from luthier.server.voice import Voice

SILENCE_SECONDS = 15.0
"""A stream says that it is alive after this long without a token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the engine is asked to do."""

    prompts: Sequence[Prompt]
    how: Sampling
    shaping: Shaping
    n: int = 1
    client: str = ""
    """Whose turn it is: requests of one client share their turns."""


class Job:
    """Runs work in the engine while somebody listens. `close` always, whatever happened."""

    def __init__(self, service: Service, voice: Voice, work: Work, receive: Receive) -> None:
        self._service, self._voice, self._work = service, voice, work
        self._receive = receive
        self._inbox = Inbox(self._overflowed)
        self._began = time.perf_counter()
        self._first: float | None = None
        self._open = len(work.prompts) * work.n
        self._requests: list[Request] = []
        self._places = 0
        self._helpers: list[asyncio.Task[None] | asyncio.TimerHandle] = []

    @property
    def tokens_in(self) -> int:
        """Return the tokens of all prompts."""
        return sum(len(prompt) for prompt in self._work.prompts)

    @property
    def tokens_out(self) -> int:
        """Return the tokens of the answers that have ended, those of stop texts and the end of turn among them."""
        ended = (answer for request in self._requests for answer in request.answers if answer is not None)
        return sum(len(answer.tokens) for answer in ended)

    @property
    def usage(self) -> Usage:
        """Return what the request took."""
        taken, given = self.tokens_in, self.tokens_out
        return Usage(prompt_tokens=taken, completion_tokens=given, total_tokens=taken + given)

    async def start(self) -> None:
        """Hand the work to the engine. Raises ApiError when there is no place or the engine refuses it."""
        self._service.admit(self._open)
        self._places = self._open
        self._service.jobs.add(self)
        try:
            self._requests = await self._service.read(self._submit)
        except LuthierError as error:
            self.close()
            raise ApiError(400, str(error), code=error.code) from error
        except BaseException:
            self.close()
            raise
        self._service.metrics.tokens_in.inc(self.tokens_in)
        limit = self._service.limits.request_timeout_seconds
        late = ApiError(504, f"the answer took longer than {limit:g} s", code="timeout", headers=DO_NOT_RETRY)
        self._helpers.append(asyncio.get_running_loop().call_later(limit, self.fail, late, "timeout"))
        self._helpers.append(asyncio.create_task(self._watch_client()))

    def _submit(self) -> list[Request]:
        work, pump = self._work, self._voice.pump
        taken: list[Request] = []
        try:
            for number, prompt in enumerate(work.prompts):
                reader = _reader(self._inbox, number)
                taken.append(
                    pump.submit(prompt, work.how, work.n, reader=reader, shaping=work.shaping, client=work.client)
                )
        except BaseException:
            for request in taken:
                pump.cancel(request)
            raise
        return taken

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.fail(ClientGone(), "disconnect")

    def fail(self, error: BaseException, reason: str) -> None:
        """Let whoever reads the answer see `error`, and stop the engine's work on it."""
        self._service.metrics.cancelled.labels(reason).inc()
        self._inbox.fail(error)
        self.close()

    def _overflowed(self) -> None:
        self.fail(ApiError(503, "the answer was read too slowly", code="slow_reader"), "slow_reader")

    async def pieces(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """Yield pieces as they come until every answer has ended; an empty list after some time of silence.

        Each comes with the number of the choice that it belongs to. Raises ApiError or ClientGone.
        """
        while self._open > 0:
            found = await self._inbox.take(SILENCE_SECONDS)
            self._note(found)
            yield [(number * self._work.n + piece.index, piece) for number, piece in found]

    def _note(self, found: list[tuple[int, Piece]]) -> None:
        if found and self._first is None:
            self._first = time.perf_counter()
            self._service.metrics.first_token.observe(self._first - self._began)
        ends = [(number, piece) for number, piece in found if piece.finish_reason is not None]
        self._open -= len(ends)
        given_up = next((number for number, piece in ends if piece.finish_reason == "abort"), None)
        if given_up is not None:
            raise self._failure(self._requests[given_up].error)

    @staticmethod
    def _failure(error: Exception | None) -> ApiError:
        """Return what a client is told of an error in the engine: all of it where it is meant for people."""
        said = f": {error}" if isinstance(error, LuthierError) else ""
        code = error.code if isinstance(error, LuthierError) else "engine_failure"
        return ApiError(500, f"the engine gave this answer up{said}", code=code)

    def close(self) -> None:
        """Give the places back, and stop what is still growing."""
        for helper in self._helpers:
            helper.cancel()
        self._helpers.clear()
        if self not in self._service.jobs:
            return
        self._service.jobs.discard(self)
        self._service.release(self._places)
        self._service.metrics.tokens_out.inc(self.tokens_out)
        if self._open > 0:
            self._service.given_up += 1
            for request in self._requests:
                self._voice.pump.cancel(request)
        else:
            self._service.finished += 1
            self._note_rate()

    def _note_rate(self) -> None:
        if self._first is not None and self.tokens_out > self._places:
            seconds = time.perf_counter() - self._first
            self._service.metrics.rate.observe((self.tokens_out / self._places - 1) / max(seconds, 1e-6))


def _reader(inbox: Inbox, number: int) -> Callable[[Piece], None]:
    return lambda piece: inbox.put(number, piece)
