"""This side of the process in which rewards run that may hang: started when needed, killed when it takes too long."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import luthier
from luthier.core import errors
from luthier.core.log import logger
from luthier.core.types import Answer
from luthier.rewards.outcomes import Failure, Outcome
from luthier.rewards.worker_process import Request

SECONDS_TO_START = 120.0
"""Until a reward is imported."""
SECONDS_TO_BEGIN = 10.0
MOST_OUTPUT = 1 << 16
"""Bytes of what a reward prints that are shown."""

_MAIN = """
import sys
sys.path.append(sys.argv[3])
from luthier.rewards.worker_process import main
main(int(sys.argv[1]), int(sys.argv[2]))
"""


@dataclass(slots=True)
class Job:
    """A reward and everything that it grades now."""

    number: int
    """The same for the same reward."""
    reward: bytes
    units: Sequence[Sequence[Answer]]
    together: bool
    parallel: int
    seconds: float
    outcomes: dict[int, list[Outcome]] = field(default_factory=dict[int, list[Outcome]])
    """By unit."""

    def left(self) -> list[int]:
        """Return the units without an outcome."""
        return [number for number in range(len(self.units)) if number not in self.outcomes]

    def fail(self, numbers: Sequence[int], failure: Failure) -> None:
        """Give up on units."""
        for number in numbers:
            self.outcomes[number] = [failure] * len(self.units[number])


class _Gone(Exception):
    """The process ended or was ended."""


class Worker:
    """One process for all rewards that may hang. Not for several threads at once."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._requests = self._replies = -1
        self._rest = b""
        self._known: set[int] = set()
        self._output: _Output | None = None

    def run(self, job: Job) -> list[Outcome]:
        """Return the outcome of every answer. Raises the LuthierError that a reward raised."""
        while left := job.left():
            try:
                self._session(job, left)
            except _Gone:
                self.close()
            except BaseException:
                self.close()  # replies of this session must not be read by the next
                raise
        return [outcome for number in range(len(job.units)) for outcome in job.outcomes[number]]

    def close(self) -> None:
        """End the process and whatever it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(self._requests)
        os.close(self._replies)
        self._rest, self._known = b"", set()

    def _start(self) -> subprocess.Popen[bytes]:
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(requests), str(replies), str(Path(luthier.__file__).parents[1])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            pass_fds=(requests, replies),
            start_new_session=True,
        )
        os.close(requests)
        os.close(replies)
        assert self._process.stdout is not None
        self._output = _Output(self._process.stdout)
        return self._process

    def _session(self, job: Job, left: list[int]) -> None:
        """Grade what is left until it is done or the process is gone, which leaves at least one unit less."""
        if self._process is not None and self._process.poll() is not None:
            self.close()
        process = self._process or self._start()
        reward = None if job.number in self._known else job.reward
        request = Request(job.number, reward, [job.units[i] for i in left], job.together, job.parallel, job.seconds)
        begun: dict[int, float] = {}
        is_ready = False
        try:
            self._send((list(sys.path), *(getattr(request, each.name) for each in fields(request))))
            deadline, limit = time.monotonic() + SECONDS_TO_START, SECONDS_TO_START
            while True:
                reply = self._receive(deadline)
                if reply is None:
                    late = [number for number, since in begun.items() if since + limit <= time.monotonic()]
                    job.fail(late or left, Failure("time limit", f"took longer than {limit:g} s"))
                    raise _Gone
                if "broken" in reply:
                    job.fail(left, Failure("import", reply["broken"]))
                    return
                if "done" in reply:
                    return
                is_ready = is_ready or "ready" in reply
                if "ready" in reply:
                    self._known.add(job.number)
                    limit = job.seconds
                self._note(reply, job, left, begun)
                deadline = min(begun.values()) + limit if begun else time.monotonic() + SECONDS_TO_BEGIN
        except (OSError, EOFError) as error:
            numbers = list(begun) or (left[:1] if is_ready else left)
            job.fail(numbers, Failure("ended", self._last_words(process)))
            raise _Gone from error

    @staticmethod
    def _note(reply: dict[str, Any], job: Job, left: list[int], begun: dict[int, float]) -> None:
        if "begin" in reply:
            begun[left[reply["begin"]]] = time.monotonic()
        elif "end" in reply:
            number = left[reply["end"]]
            begun.pop(number, None)
            if "fatal" in reply:
                name, message, code = reply["fatal"]
                raise getattr(errors, name, errors.LuthierError)(message, code=code)
            job.outcomes[number] = [Failure(*each) if isinstance(each, list) else each for each in reply["outcomes"]]

    def _send(self, request: tuple[Any, ...]) -> None:
        body = pickle.dumps(request)
        data = memoryview(struct.pack("<Q", len(body)) + body)
        while data:
            data = data[os.write(self._requests, data) :]

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        """Return the next reply; None when there is none in time."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._replies], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            more = os.read(self._replies, 1 << 16)
            if not more:
                raise EOFError
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def _last_words(self, process: subprocess.Popen[bytes]) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
        code = process.poll()
        how = "closed its channel" if code is None else f"exit code {code}" if code >= 0 else f"signal {-code}"
        said = self._output.last_line() if self._output is not None else ""
        return f"its process ended ({how})" + (f": {said}" if said else "")


class _Output(threading.Thread):
    """Shows the beginning of what a reward prints, and lets the rest go by."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._stream, self._last = stream, b""
        self.start()

    def last_line(self) -> str:
        """Return the end of what was printed."""
        self.join(0.5)
        lines = self._last.decode(errors="replace").strip().splitlines()
        return lines[-1][-300:] if lines else ""

    def run(self) -> None:
        """Read until the process and its children are gone."""
        left = MOST_OUTPUT
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(self._stream.fileno(), 1 << 16):
                self._last = (self._last + data)[-2000:]
                if left > 0:
                    for line in data[:left].decode(errors="replace").strip().splitlines():
                        logger.info("reward: %s", "".join(c if c.isprintable() or c == "\t" else "?" for c in line))
                    left -= len(data)
                    if left <= 0:
                        logger.info("reward: what it prints from here on is left out")
        self._stream.close()
