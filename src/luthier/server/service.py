"""What a server has: a model that loads in the background, places for requests, and an orderly end."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from luthier.core.errors import LuthierError
from luthier.core.log import logger, printable
from luthier.server.errors import DO_NOT_RETRY, ApiError, bad
from luthier.server.metrics import Metrics
from luthier.server.voice import Voice

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from starlette.requests import Request

    from luthier.config.schema import ServeConfig
    from luthier.server.job import Job
    from luthier.workflows.serve import Plan, Served

State = Literal["loading", "ready", "failed", "stopping"]
T = TypeVar("T")


class Service:
    """Loads what a plan names, hands out places, and ends in order."""

    def __init__(self, plan: Plan, limits: ServeConfig) -> None:
        self.plan, self.limits = plan, limits
        self.state: State = "loading"
        self.progress = "starting"
        self.created = int(time.time())
        self.failure: BaseException | None = None
        self.metrics = Metrics()
        self.jobs: set[Job] = set()
        self.taken = 0
        """Answers that are growing or waiting."""
        self.finished = self.given_up = 0
        self.on_failure: Callable[[], None] = lambda: None
        self.voices: dict[str, Voice] = {}
        self._served: Served | None = None
        # Templates and tokenizers one at a time, beside the loop that moves bytes.
        self._reader, self._computer = ThreadPoolExecutor(1, "prompts"), ThreadPoolExecutor(1, "scores")
        self._watch_numbers()

    def _watch_numbers(self) -> None:
        watch = self.metrics.watch
        watch("running_requests", "Requests whose answers grow.", lambda: self._pump_number("running"))
        watch("waiting_requests", "Requests that wait for a place.", lambda: self._pump_number("waiting"))
        watch("ready", "1 when the model answers.", lambda: float(self.state == "ready"))

    def _pump_number(self, name: str) -> float:
        return float(getattr(self._served.pump, name)) if self._served is not None else 0.0

    # ---- life

    def start(self) -> None:
        """Begin to load, in a thread of its own."""
        loop = asyncio.get_running_loop()

        def work() -> None:
            try:
                served = self.plan.load(self._tell)
            except BaseException as error:  # noqa: BLE001  told to whoever asks, and raised when the server has ended
                tell = partial(self._failed, error)
            else:
                tell = partial(self._loaded, served)
            with suppress(RuntimeError):  # the loop has ended: nobody waits for it any more
                loop.call_soon_threadsafe(tell)

        Thread(target=work, name="loading", daemon=True).start()

    def _tell(self, progress: str) -> None:
        self.progress = progress

    def _loaded(self, served: Served) -> None:
        self._served = served
        self.voices = {name: Voice(served, name, inside) for name, inside in self.plan.adapters.items()}
        if self.state == "loading":
            self.state = "ready"
            logger.info("ready: %s", ", ".join(self.plan.adapters))

    def _failed(self, error: BaseException) -> None:
        self.state, self.failure = "failed", error
        if not isinstance(error, LuthierError):
            logger.error("the model cannot be loaded: %s", error, exc_info=error)
        self.on_failure()

    def stop_soon(self, grace_seconds: float) -> None:
        """Take nothing new, and let what runs go on for some time."""
        self.state = "stopping"
        if self.jobs:
            logger.info("stopping: %d requests may go on for %g s", len(self.jobs), grace_seconds)
        asyncio.get_running_loop().call_later(grace_seconds, self.give_up)

    def give_up(self) -> None:
        """End every request with an error that says so."""
        for job in list(self.jobs):
            job.fail(ApiError(503, "the server stopped before this answer was done", code="shutting_down"), "shutdown")

    def close(self) -> None:
        """End: nothing is answered any more."""
        self.give_up()
        if self._served is not None:
            self._served.pump.close(0)
        for threads in (self._reader, self._computer):
            threads.shutdown(wait=False, cancel_futures=True)
        logger.info("stopped: %d requests were answered, %d were given up", self.finished, self.given_up)

    # ---- what requests need

    def ready(self) -> None:
        """Raise ApiError while nothing can be answered."""
        served = self._served
        if self.state == "ready" and served is not None and served.pump.alive:
            return
        reasons = {
            "loading": f"the model is being loaded: {self.progress}",
            "failed": "the model could not be loaded",
            "stopping": "the server is stopping",
            "ready": "the engine starts again after a failure",
        }
        headers = {"Retry-After": "2"} if self.state in ("loading", "ready") else DO_NOT_RETRY
        raise ApiError(503, reasons[self.state], code=f"model_{self.state}", headers=headers)

    def check_name(self, model: str) -> None:
        """Raise ApiError for a model that is not here."""
        if model not in self.plan.adapters:
            there = ", ".join(self.plan.adapters)
            said = f"there is no model {printable(model)} here; there are: {there}"
            raise ApiError(404, said, param="model", code="model_not_found")

    def voice(self, model: str) -> Voice:
        """Return the model of a name. Raises ApiError for an unknown one, and while none answers."""
        self.check_name(model)
        self.ready()
        return self.voices[model]

    async def read(self, work: Callable[..., T], *args: Any) -> T:
        """Run what takes time on the thread for prompts."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, *args)

    async def compute(self, work: Callable[..., T], *args: Any) -> T:
        """Run what takes the engine's time on a thread of its own."""
        return await asyncio.get_running_loop().run_in_executor(self._computer, work, *args)

    def admit(self, answers: int, field: str = "n") -> None:
        """Take places for answers; `release` gives them back. Raises ApiError when there is none."""
        most = self.limits.max_concurrent + self.limits.max_queue
        if answers > most:
            raise bad(f"{answers} answers at once are more than the {most} that this server holds", field)
        if self.taken + answers > most:
            raise ApiError(
                429,
                f"{self.taken} answers grow or wait, and this server holds {most}; ask again later",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        self.taken += answers

    def release(self, answers: int) -> None:
        """Give places back."""
        self.taken -= answers

    @contextmanager
    def places(self, answers: int, field: str) -> Generator[None]:
        """Hold places inside the block."""
        self.admit(answers, field)
        try:
            yield
        finally:
            self.release(answers)

    @staticmethod
    def client(request: Request, user: str | None) -> str:
        """Return whose turn it is: requests under one key and of one user share their turns."""
        return f"{request.scope.get('luthier.key', '')}/{user or ''}"
