"""A job as people see it: the state of its files, in words."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.runs.job_files import ACTIVE, LARGEST_OUT_BYTES, WAITING, JobFile, Kind, State
from luthier.runs.store import FINAL_STATES, read_status

if TYPE_CHECKING:
    from pathlib import Path

_TAIL_LINES = {"failed": 50, "crashed": 50}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A job as people see it; the fields are those of the page's interface."""

    id: str
    kind: Kind
    name: str
    state: State
    run: str | None
    position: int | None
    created: float
    started: float | None
    ended: float | None
    exit_code: int | None
    tries: int
    reason: str
    error: dict[str, Any] | None
    log_tail: list[str]
    progress: float | None
    doing: str
    result: dict[str, Any] | None
    command: str
    memory_bytes: int | None


def view(
    job: JobFile, root: Path, position: int | None = None, reason: str = "", *, most_bytes: int = LARGEST_OUT_BYTES
) -> JobView:
    """Return a job as people see it. `position` and `reason`: its place in the queue, and why it waits.

    A result of more than `most_bytes` is left out.
    """
    spec, now = job.spec, job.now
    share, doing = _progress(job, root)
    lines = _TAIL_LINES.get(now.state, 0)
    return JobView(
        id=job.id, kind=spec.kind, name=spec.name, state=now.state, run=spec.run,
        position=position if now.state in WAITING else None, created=job.created, started=now.started,
        ended=now.ended, exit_code=now.exit_code, tries=spec.tries, reason=now.reason or reason, error=now.error,
        log_tail=job.tail(lines) if lines else [], progress=share, doing=doing,
        result=job.document(most_bytes) if now.state == "done" else None, command=shown(job.command(root, now.port)),
        memory_bytes=spec.memory_bytes,
    )  # fmt: skip


def shown(command: list[str]) -> str:
    """Return a command line as a person writes it, to be pasted into a shell."""
    own = command[1:3] == ["-m", "luthier"] and command[0] == sys.executable
    return shlex.join(["luthier", *command[3:]] if own else command)


def _progress(job: JobFile, root: Path) -> tuple[float | None, str]:
    if job.now.state == "done":
        return 1.0, ""
    if job.now.state not in ACTIVE:
        return None, ""
    share, doing = job.progress()
    if job.spec.kind == "train" and job.spec.run:
        status = read_status(root / job.spec.run)
        step, total = status.get("step"), status.get("total")
        if isinstance(step, int) and isinstance(total, int) and total > 0:
            share = min(1.0, step / total)
        said = str(status.get("state") or "")
        # Before there is a status it reads rows; one that has ended is of the process before.
        doing = doing if said in ("", *FINAL_STATES, "crashed") else said
    return share, doing
