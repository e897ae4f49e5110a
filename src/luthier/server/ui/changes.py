"""What has changed anywhere, for the whole page: one stream a browser, of names alone; what they mean is asked for."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Response

from luthier.core.log import first_line, say_once
from luthier.runs.index import parted
from luthier.runs.job_files import ACTIVE, OWN
from luthier.runs.launch import LOG, PROGRESS
from luthier.runs.queue import FILE as QUEUE
from luthier.server.ui.sse import ALIVE, ALIVE_SECONDS, BEGIN, EventStream, event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from luthier.runs.job_files import JobFile
    from luthier.server.ui.state import State

Change = tuple[str, str]
"""Kind (jobs, runs, queue, serving) and id; an empty id means all of them."""
Changed = dict[Change, bool]
"""What has changed, with whether it has only grown: whoever follows a run by its own stream knows that already."""
LOOK_SECONDS = 0.5
SHARE = 0.01
"""Most of the time that is spent looking."""
LONGEST_SECONDS = 3.0
"""Between two looks, however long one takes: what has gone is noticed."""
GROWING_SECONDS = 2.0
"""What only grows, as a run that trains does, is told so often."""
REFRESH_SECONDS = 0.3
MOST_WAITING = 500
"""A reader that is behind by more is told that all has changed."""


class Reader:
    """What one browser has not been told yet. A change that is waiting already does not wait twice."""

    def __init__(self) -> None:
        self.there = asyncio.Event()
        self._waiting: Changed = {}

    def add(self, changes: Mapping[Change, bool]) -> None:
        """Let changes wait for the next look."""
        self._waiting |= {change: grown and self._waiting.get(change, True) for change, grown in changes.items()}
        if len(self._waiting) > MOST_WAITING:
            self._waiting = {(kind, ""): False for kind, _ in self._waiting}
        if self._waiting:
            self.there.set()

    def take(self) -> bytes:
        """Return what waits, as events."""
        found, self._waiting = self._waiting, {}
        self.there.clear()
        return b"".join(
            event({"kind": kind, "id": id, **({"grown": True} if grown else {})}, kind)
            for (kind, id), grown in found.items()
        )


class Sight:
    """What was seen at the last look: of each thing a mark for its state, and one for how far it has grown."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._marks: dict[Change, tuple[Any, Any]] | None = None
        self._told: dict[Change, float] = {}

    def look(self) -> Changed:
        """Return what is different from the last look; at the first one nothing is."""
        marks = self._look()
        before, self._marks = self._marks, marks
        if before is None:
            return {}
        now = time.monotonic()
        found = {change: False for change in before if change not in marks}
        for change, (state, size) in marks.items():
            known = before.get(change)
            if known == (state, size):
                continue
            if known is None or known[0] != state:
                found[change] = False
            elif now - self._told.get(change, -GROWING_SECONDS) >= GROWING_SECONDS:
                found[change] = True
            else:
                marks[change] = known  # to be told at a later look
                continue
            self._told[change] = now
        self._told = {change: at for change, at in self._told.items() if change in marks}
        return found

    def _look(self) -> dict[Change, tuple[Any, Any]]:
        root = self._state.roots.runs
        marks: dict[Change, tuple[Any, Any]] = {("queue", ""): (_stamp(root / OWN / QUEUE), None)}
        trained: set[str | None] = set()
        for job in self._state.jobs.files():
            marks["jobs", job.id] = self._of_job(job)
            if job.spec.kind == "train" and job.now.state in ACTIVE:
                trained.add(job.spec.run)
            if job.spec.kind == "serve":
                log = _stamp(job.folder / LOG) if job.now.state in ACTIVE else None
                marks["serving", job.id] = (job.now.state, log)
        self._state.index.refresh(seconds=REFRESH_SECONDS)
        for id, (stamp, state) in self._state.index.stamps().items():
            by_hand, growing = parted(stamp)
            marks["runs", id] = ((state, id in trained, by_hand), growing)
        return marks

    def _of_job(self, job: JobFile) -> tuple[Any, Any]:
        if job.now.state not in ACTIVE:
            return job.now.state, None
        run = self._state.roots.runs / job.spec.run / "status.json" if job.spec.run else job.folder
        return (job.now.state, job.now.asked), (_stamp(job.folder / PROGRESS), _stamp(run))


class Changes:
    """Looks while somebody listens, once for all who do."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._readers: set[Reader] = set()
        self._task: asyncio.Task[None] | None = None

    async def follow(self) -> AsyncIterator[bytes]:
        """Yield changes from now on, until the server ends."""
        reader = Reader()
        self._readers.add(reader)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())
        silent = time.monotonic()
        try:
            yield BEGIN
            while not self._state.closing.is_set():
                try:
                    async with asyncio.timeout(1.0):
                        await reader.there.wait()
                except TimeoutError:
                    if time.monotonic() < silent + ALIVE_SECONDS:
                        continue
                silent = time.monotonic()
                yield reader.take() or ALIVE
        finally:
            self._readers.discard(reader)

    async def _watch(self) -> None:
        sight = Sight(self._state)
        while self._readers and not self._state.closing.is_set():
            began = time.perf_counter()
            try:
                found = await asyncio.to_thread(sight.look)
            except Exception as error:  # noqa: BLE001  a folder that is gone must not end the stream
                say_once(f"changes could not be looked for: {first_line(error)}")
                found = {}
            for reader in self._readers:
                reader.add(found)
            # A look at thousands of runs takes time that a training may want.
            took = time.perf_counter() - began
            await asyncio.sleep(max(LOOK_SECONDS, min(took / SHARE, LONGEST_SECONDS)))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def routes(state: State) -> APIRouter:
    """Return the stream of changes."""
    router, changes = APIRouter(tags=["jobs"]), Changes(state)

    @router.get("/changes", summary="What has changed anywhere, as server-sent events", response_class=Response)
    async def stream() -> Response:
        return EventStream(changes.follow())

    return router
