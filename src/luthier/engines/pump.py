"""A thread that computes while there is work, so that others only hand in requests and listen."""

from __future__ import annotations

import time
from threading import Condition, Thread
from typing import TYPE_CHECKING

from luthier.core.errors import RunError
from luthier.core.log import first_line, logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from luthier.core.types import Prompt, Sampling
    from luthier.engines.local import LocalEngine
    from luthier.engines.requests import Request
    from luthier.engines.shaping import Piece, Shaping

_PAUSE_SECONDS = 0.05
"""Rest after a step that failed, so that what fails for ever does not take the whole processor."""


class Pump:
    """Steps `engine` in a thread of its own. Any thread may submit and cancel.

    When a step fails, the requests that were computed end and keep the error; those that wait go on.
    """

    def __init__(self, engine: LocalEngine) -> None:
        self.engine = engine
        self._closing, self._closed = False, False
        self._work = Condition()
        self._thread = Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Return how many requests are computed."""
        return self.engine.num_running

    @property
    def waiting(self) -> int:
        """Return how many requests wait in the queue."""
        return self.engine.num_waiting

    @property
    def failures(self) -> int:
        """Return how many steps failed."""
        return self.engine.failures

    @property
    def counts(self) -> dict[str, int]:
        """Return what is computed, what waits, and what was done: tokens in and out, steps, steps that failed."""
        return {"running": self.running, "waiting": self.waiting, **self.engine.counts, "failures": self.failures}

    @property
    def alive(self) -> bool:
        """Tell whether requests are answered."""
        return self._thread.is_alive() and not self._closing

    def submit(
        self,
        prompt: Prompt,
        how: Sampling,
        n: int = 1,
        *,
        reader: Callable[[Piece], None] | None = None,
        shaping: Shaping | None = None,
        client: str = "",
    ) -> Request:
        """Hand in a request, as `LocalEngine.submit` takes it. Raises RunError when no more are answered."""
        with self._work:
            if not self.alive:
                raise RunError("the decoder was stopped and answers no more requests", code="decoder_stopped")
            request = self.engine.submit(prompt, how, n, reader=reader, shaping=shaping, client=client)
            self._work.notify()
        return request

    def cancel(self, request: Request) -> None:
        """Give up what of `request` is not done."""
        self.engine.cancel(request)

    def close(self, grace_seconds: float = 0.0) -> None:
        """Take no more; what runs or waits may go on for `grace_seconds`, then it is given up."""
        end = time.monotonic() + grace_seconds
        with self._work:
            self._closing = True
        while self._thread.is_alive() and (self.running or self.waiting) and time.monotonic() < end:
            time.sleep(0.01)
        with self._work:
            self._closed = True
            self._work.notify()
        self._thread.join()
        self.engine.abandon()

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._closed or self.waiting or self.running)
                if self._closed:
                    return
            try:
                self.engine.step()
            except Exception as error:  # noqa: BLE001  its requests keep it, and the next ones are answered
                logger.error("a step of the decoder failed: %s", first_line(error), exc_info=error)
                time.sleep(_PAUSE_SECONDS)
