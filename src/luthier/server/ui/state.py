"""What the routes of the page share: folders, jobs, the index, the worker, who is let in."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from luthier.core.log import first_line, say_once
from luthier.runs.index import Index
from luthier.runs.jobs import Jobs
from luthier.runs.trash import purge
from luthier.server.ui.caches import Caches
from luthier.server.ui.roots import Roots, Which
from luthier.server.ui.session import Sessions
from luthier.server.ui.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MOST_UPLOAD_BYTES", "Roots", "State", "Which"]

MOST_UPLOAD_BYTES = 2 << 30
TICK_SECONDS = 0.5
LATER = ("pyarrow.json", "pyarrow.compute", "luthier.evaluation.results", "luthier.server.ui.pass_on")
"""Modules that are not needed to show the page."""
WARM_AFTER_SECONDS = 3.0
"""The page is shown first."""


@dataclass
class State:
    """One for each server."""

    roots: Roots
    sessions: Sessions
    jobs: Jobs
    index: Index
    worker: Worker
    allow_remote_code: bool = False
    """Said on the command line; never by the page or a file."""
    max_upload_bytes: int = MOST_UPLOAD_BYTES
    host: str = "127.0.0.1"
    """Address that the server listens on."""
    caches: Caches = field(default_factory=Caches)
    """What was read of runs lately."""
    started: float = field(default_factory=time.time)
    """Seconds since the epoch."""

    closing: threading.Event = field(default_factory=threading.Event)
    """Set when the server ends; streams look at it and end, too."""

    warm: bool = False
    """Whether modules are loaded, and children of the worker started, before they are needed."""

    def begin(self) -> None:
        """Start what runs beside the requests."""
        if self.warm:
            timer = threading.Timer(WARM_AFTER_SECONDS, self._get_ready)
            timer.daemon = True
            timer.start()
        # A large run takes long to remove, and jobs must not wait for that.
        for name, work in (("jobs", self.jobs.tick), ("trash", partial(purge, self.roots.runs))):
            threading.Thread(target=self._repeat, args=(name, work), name=f"luthier-{name}", daemon=True).start()

    def _get_ready(self) -> None:
        """Load what the first requests of a kind would wait for."""
        for name in LATER:
            import_module(name)

    def expect_questions(self) -> None:
        """Let the worker get ready, because somebody will ask soon; returns at once."""
        if self.warm and not self.closing.is_set():
            self.worker.warm()

    def close(self) -> None:
        """End what runs beside the requests; jobs go on."""
        self.closing.set()
        self.worker.close()

    def _repeat(self, name: str, work: Callable[[], object]) -> None:
        while not self.closing.wait(TICK_SECONDS):
            try:
                work()
            except Exception as error:  # noqa: BLE001  a full disk or a folder that is gone must not end the queue
                say_once(f"{name} could not be looked at: {first_line(error)}")

    @property
    def token(self) -> str:
        """Return what lets somebody in; children never see it."""
        return self.sessions.token
