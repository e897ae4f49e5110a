"""How a job ended: from its exit code, what it printed, and what its run directory says, in words."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from luthier.runs.job_files import State
from luthier.runs.process import Identity
from luthier.runs.store import read_status

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.runs.job_files import JobFile

_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_KILLED = "killed (by the kernel for memory, or by hand)"
UNSEEN = "it ended while nobody watched; its exit code is not known"
ANSWERS_WITH_TWO = frozenset({"audit"})
"""Kinds that say with exit code 2 that they have found something."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a job."""

    state: State
    reason: str = ""
    error: dict[str, Any] | None = None


def outcome(job: JobFile, root: Path, code: int | None) -> Outcome:
    """Return how a job ended. `code`: its exit code, negative for a signal, None where nobody saw it."""
    now, document = job.now, job.document()
    error = _error(document)
    finished = document is not None and error is None and document.get("ok") is not False
    if code == 0 or (finished and (code is None or (code == 2 and job.spec.kind in ANSWERS_WITH_TWO))):
        stopped = bool(now.asked) and not finished
        return Outcome("stopped", "stopped as asked") if stopped else Outcome("done")
    if now.asked:
        return Outcome("stopped", {"stop": "stopped as asked", "kill": "ended at once, as asked"}[now.asked])
    if code in _STOPPED:
        return Outcome("stopped", _stop_words(job, root) or "stopped by a signal from elsewhere")
    if code is not None and code < 0:
        return Outcome("crashed", _signal_words(-code))
    if error is not None:
        return Outcome("failed", error["message"], error)
    if code is None:
        return _of_the_run(job, root)
    last = next((line for line in reversed(job.tail(50)) if line.strip()), "")
    return Outcome("failed", last or f"it ended with exit code {code} and said nothing")


def _error(document: dict[str, Any] | None) -> dict[str, Any] | None:
    found: Any = None if document is None else document.get("error")
    if document is None or document.get("ok") is not False or not isinstance(found, dict):
        return None
    plain = cast("dict[str, Any]", found)
    return {"code": str(plain.get("code", "failed")), "message": str(plain.get("message", ""))}


def _signal_words(number: int) -> str:
    if number == signal.SIGKILL:
        return _KILLED
    try:
        return f"ended by {signal.Signals(number).name}"
    except ValueError:
        return f"ended by signal {number}"


def _stop_words(job: JobFile, root: Path) -> str:
    if job.spec.kind != "train" or job.spec.run is None:
        return ""
    reason = read_status(root / job.spec.run).get("stop_reason")
    return "" if reason is None else f"stopped by {reason}"


def _of_the_run(job: JobFile, root: Path) -> Outcome:
    """Return how a training ended that nobody saw end: its run directory knows."""
    if job.spec.kind != "train" or job.spec.run is None:
        return Outcome("crashed", UNSEEN)
    status = read_status(root / job.spec.run)
    process, trained = job.process(), Identity.from_dict(status.get("process"))
    about_it = process is not None and trained is not None and process.is_same(trained)
    if not about_it or status.get("state") not in ("done", "stopped", "failed"):
        return Outcome("crashed", UNSEEN)
    if status["state"] == "failed":
        error = {"code": str(status.get("error_code") or "failed"), "message": str(status.get("error") or "")}
        return Outcome("failed", error["message"], error)
    return Outcome(status["state"], str(status.get("stop_reason") or ""))
