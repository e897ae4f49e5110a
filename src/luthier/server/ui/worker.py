"""What needs torch or a tokenizer is computed in children, so that the server stays small and never stands still.

A child reads one JSON line a question and writes one a reply. It ends with the server, when nobody asked for a while,
and when an answer takes too long; the next question starts a fresh one.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from luthier.core.errors import LuthierError
from luthier.core.log import first_line, logger
from luthier.server.ui.failures import Refused

if TYPE_CHECKING:
    from pathlib import Path

IDLE_SECONDS = 300.0
MOST_WAITING = 8
"""Questions that wait for one child; more are told to come again."""
WARM_SECONDS = 180.0
LARGEST_LOG_BYTES = 1_000_000
LARGEST_REPLY_BYTES = 64_000_000
SLOW = ("estimate",)
"""Tasks that take long have a child of their own, so that the others never wait for them."""
NICENESS = 5
"""A training that runs goes first."""


class Worker:
    """Asks children; safe to use from any thread."""

    def __init__(self, log: Path, *, allow_remote_code: bool = False, idle_seconds: float = IDLE_SECONDS) -> None:
        self._allow_remote_code = allow_remote_code
        self._closed = False
        self._slow, self._quick = (_Child(log, idle_seconds) for _ in range(2))

    def ask(self, task: str, seconds: float, **asked: Any) -> Any:
        """Return what a task answers. Blocks, so it is for threads.

        Raises LuthierError for what the task refuses; Refused where the child died (503), took longer than `seconds`
        (504), or has too many questions before it (429).
        """
        child = self._slow if task in SLOW else self._quick
        return child.ask({"task": task, "allow_remote_code": self._allow_remote_code, **asked}, seconds)

    def warm(self) -> None:
        """Start the children that do not live, and let them load what takes long; returns at once."""
        threading.Thread(target=self._warm, name="luthier-warm", daemon=True).start()

    def _warm(self) -> None:
        # One after the other: an estimate is what is asked for first.
        for child in (self._slow, self._quick):
            try:
                child.warm()
            except (LuthierError, OSError) as error:
                if not self._closed:
                    logger.warning("what answers questions could not be started beforehand: %s", first_line(error))

    def close(self) -> None:
        """End the children."""
        self._closed = True
        self._slow.close()
        self._quick.close()


class _Child:
    """One process, started when it is needed."""

    def __init__(self, log: Path, idle_seconds: float) -> None:
        self._log, self._idle_seconds = log, idle_seconds
        self._lock, self._places = threading.Lock(), threading.BoundedSemaphore(MOST_WAITING)
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: threading.Timer | None = None
        self._closed = False

    def ask(self, question: dict[str, Any], seconds: float) -> Any:
        until = time.monotonic() + seconds
        if not self._places.acquire(blocking=False):
            said = "other questions of this kind are being answered; ask again in a moment"
            raise Refused(429, "worker_busy", said, headers={"Retry-After": "2"})
        try:
            if not self._lock.acquire(timeout=seconds):
                raise _too_slow(question["task"], seconds)
            try:
                return self._answer(question, until, seconds)
            finally:
                self._lock.release()
        finally:
            self._places.release()

    def warm(self) -> None:
        process = self._process
        if not self._closed and (process is None or process.poll() is not None):
            self.ask({"task": "warm", "allow_remote_code": False}, WARM_SECONDS)

    def close(self) -> None:
        self._closed = True
        self._end()

    def _answer(self, question: dict[str, Any], until: float, seconds: float) -> Any:
        if self._timer is not None:
            self._timer.cancel()
        process = self._living()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            reply = _read_line(process, until)
        except (OSError, EOFError) as error:
            raise self._death(process) from error
        if reply is None:
            self._end()
            raise _too_slow(question["task"], seconds)
        self._timer = threading.Timer(self._idle_seconds, self._end_if_idle)
        self._timer.daemon = True
        self._timer.start()
        return _opened(json.loads(reply))

    def _living(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            if self._closed:
                raise Refused(503, "server_ends", "the server ends")
            self._log.parent.mkdir(parents=True, exist_ok=True)
            mode = "ab" if self._log.exists() and self._log.stat().st_size < LARGEST_LOG_BYTES else "wb"
            hidden = {name: value for name, value in os.environ.items() if not name.startswith("LUTHIER_UI_")}
            with self._log.open(mode) as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "luthier.server.ui.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    bufsize=0,
                    env={**hidden, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
                )
        return self._process

    def _death(self, process: subprocess.Popen[bytes]) -> Refused:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        code = process.returncode
        self._end()
        why = "was ended by the kernel, perhaps because memory ran out" if code == -9 else f"ended with code {code}"
        return Refused(503, "worker_died", f"the process that was to answer {why}; {self._log} may say more")

    def _end_if_idle(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._lock.release()

    def _end(self) -> None:
        process, self._process = self._process, None
        if self._timer is not None:
            self._timer.cancel()
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()


def _read_line(process: subprocess.Popen[bytes], until: float) -> bytes | None:
    """Return the reply, None where the time is up. Raises EOFError where the child is gone."""
    assert process.stdout is not None
    parts, size = list[bytes](), 0
    while not (parts and parts[-1].endswith(b"\n")):
        left = until - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            return None
        part = os.read(process.stdout.fileno(), 1 << 16)
        if not part or (size := size + len(part)) > LARGEST_REPLY_BYTES:
            raise EOFError
        parts.append(part)
    return b"".join(parts)


def _too_slow(task: str, seconds: float) -> Refused:
    return Refused(504, "worker_slow", f"{task} took longer than {seconds:.0f} seconds and was given up")


def _opened(reply: dict[str, Any]) -> Any:
    """Return what a reply holds, or raise what it tells."""
    if "error" not in reply:
        return reply["found"]
    if reply["code"] == "failed":
        raise Refused(500, "worker_failed", reply["error"])
    raise LuthierError(reply["error"], code=reply["code"])


def main() -> None:
    """Answer questions from standard input until it ends."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints goes to the log
    os.nice(NICENESS)
    questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions,), daemon=True).start()
    from luthier.core.log import setup
    from luthier.server.ui.worker_tasks import TASKS

    setup()
    while True:
        question = json.loads(questions.get())
        try:
            reply = {"found": TASKS[question.pop("task")](**question)}
        except LuthierError as error:
            reply = {"error": str(error), "code": error.code}
        except MemoryError:
            reply = {"error": "memory ran out; end something else first", "code": "out_of_memory"}
        except Exception as error:  # noqa: BLE001  whatever a library raises, the one who asked gets a reply
            logger.exception("a question could not be answered")
            reply = {"error": f"{type(error).__name__}: {first_line(error)}", "code": "failed"}
        replies.write(json.dumps(reply).encode() + b"\n")


def _listen(questions: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        questions.put(line)
    os._exit(0)  # the server is gone; nobody waits for what is being computed


if __name__ == "__main__":
    main()
