"""The queue: which job begins next, and why the others wait. One file, written whole, behind one lock.

`<runs>/.luthier/queue.json` says the order, how many jobs run at once, and whether anything is begun at all. Jobs that
it does not name stand behind the others, oldest first, so that nothing is lost with it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

import psutil

from luthier.core.errors import RunError
from luthier.core.paths import write_whole
from luthier.runs.job_files import ACTIVE, OWN, WAITING, JobFile
from luthier.runs.launch import memory_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from pathlib import Path

FILE, LOCK = "queue.json", "queue.lock"
MOST_SLOTS = 64
KEPT_FREE = 0.1
"""Share of the available memory that no job may count on."""
WITHOUT_SLOT = frozenset({"serve"})
"""Kinds that begin at once and are not counted: they wait for questions most of the time."""
_PATIENCE_SECONDS = 10.0


def _no_ids() -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class Plan:
    """What queue.json holds."""

    order: list[str] = field(default_factory=_no_ids)
    slots: int = 1
    holding: bool = False


def read_plan(root: Path) -> Plan:
    """Return the queue as it was left; a missing or damaged file is an empty one."""
    try:
        plain: Any = json.loads((root / OWN / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Plan()
    if not isinstance(plain, dict):
        return Plan()
    found = cast("dict[str, Any]", plain)
    order = cast("list[Any]", found["order"]) if isinstance(found.get("order"), list) else []
    slots = found.get("slots")
    return Plan(
        [each for each in order if isinstance(each, str)],
        slots if isinstance(slots, int) and 1 <= slots <= MOST_SLOTS else 1,
        found.get("holding") is True,
    )


def write_plan(root: Path, plan: Plan) -> None:
    """Replace queue.json."""
    write_whole(root / OWN / FILE, json.dumps({"schema": 1, **asdict(plan)}, indent=1))


@contextmanager
def locked(root: Path, *, wait: bool = True) -> Generator[bool]:
    """Hold the queue for the time of the block: jobs are begun, changed and ended by one process at a time.

    Gives False where another one holds it and `wait` is off. Raises RunError where it is held for ten seconds.
    """
    folder = root / OWN
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield _take(descriptor, folder / LOCK, wait=wait)
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path, *, wait: bool) -> bool:
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                return False
            if time.monotonic() > end:
                message = (
                    f"the queue has been held for {_PATIENCE_SECONDS:.0f} s by another process ({path}); try again"
                )
                raise RunError(message, code="queue_busy") from None
            time.sleep(0.01)
        else:
            return True


def in_order(plan: Plan, jobs: Iterable[JobFile]) -> list[JobFile]:
    """Return the jobs that wait, first to last."""
    place = {each: number for number, each in enumerate(plan.order)}
    waiting = [job for job in jobs if job.now.state in WAITING]
    return sorted(waiting, key=lambda job: (place.get(job.id, len(place)), job.created, job.id))


def changed(plan: Plan, waiting: Sequence[str], **changes: Any) -> Plan:
    """Return the queue with new slots, holding or order. Raises RunError for an order of jobs that do not wait."""
    slots, holding, order = (changes.get(key) for key in ("slots", "holding", "order"))
    if slots is not None and not 1 <= slots <= MOST_SLOTS:
        raise RunError(f"1 to {MOST_SLOTS} jobs may run at once; found {slots}", code="queue_slots")
    if order is not None:
        foreign = [each for each in order if each not in waiting]
        if foreign or len(set(order)) < len(order):
            said = ", ".join(foreign) or "one job twice"
            raise RunError(f"the order names {said}; these wait: {', '.join(waiting) or 'none'}", code="queue_order")
        plan = replace(plan, order=[*order, *(each for each in waiting if each not in order)])
    plan = plan if slots is None else replace(plan, slots=slots)
    return plan if holding is None else replace(plan, holding=holding)


def moved(waiting: Sequence[str], job: str, position: int) -> list[str]:
    """Return the order with one job elsewhere.

    >>> moved(["a", "b", "c"], "c", 0)
    ['c', 'a', 'b']
    """
    others = [each for each in waiting if each != job]
    place = max(0, min(position, len(others)))
    return [*others[:place], job, *others[place:]]


def available_memory() -> int:
    """Return bytes that programs may take now, within the limit of the control group where there is one."""
    found = psutil.virtual_memory().available
    limit, used = _words("memory.max").get("", ""), _words("memory.current").get("", "")
    if not limit.isdigit() or not used.isdigit():
        return found
    # Files that were read and could be read again count as used there.
    kept = int(_words("memory.stat").get("inactive_file", "0"))
    return max(0, min(found, int(limit) - int(used) + kept))


def choose(
    plan: Plan, jobs: Sequence[JobFile], available: Callable[[], int] = available_memory
) -> tuple[list[JobFile], dict[str, str]]:
    """Return the jobs that begin now, and of each that waits, why.

    The first one that must wait keeps those behind it waiting, so that a large job has its turn.
    """
    running = [job for job in jobs if job.now.state in ACTIVE]
    taken = sum(job.spec.kind not in WITHOUT_SLOT for job in running)
    busy = {job.spec.run for job in running if job.spec.kind == "train"}
    promised = 0
    still_taken = cache(lambda: sum(_still_to_take(job) for job in running))
    begin: list[JobFile] = []
    reasons: dict[str, str] = {}
    blocked = "the queue is held" if plan.holding else ""
    for job in in_order(plan, jobs):
        if job.now.state == "held":
            continue
        if job.spec.kind == "train" and job.spec.run in busy:
            reasons[job.id] = f"another job trains {job.spec.run}"
            continue
        if job.spec.when != "now":
            needs_slot = job.spec.kind not in WITHOUT_SLOT
            reason = blocked if needs_slot or plan.holding else ""
            free = partial(_free, available, still_taken, promised)
            reason = reason or _why_not(job, plan, taken if needs_slot else 0, free)
            if reason:
                reasons[job.id] = reason
                blocked = blocked or ("it waits behind another job" if needs_slot else "")
                continue
        begin.append(job)
        taken += job.spec.kind not in WITHOUT_SLOT
        promised += job.spec.memory_bytes or 0
        busy |= {job.spec.run} if job.spec.kind == "train" else set()
    return begin, reasons


def _why_not(job: JobFile, plan: Plan, taken: int, free: Callable[[], int]) -> str:
    if taken >= plan.slots:
        return f"{taken} of {plan.slots} places are taken"
    wanted = job.spec.memory_bytes
    if wanted is None or wanted <= (can_be_had := free()):
        return ""
    return f"it needs {_size(wanted)} of memory; {_size(can_be_had)} can be had now"


def _free(available: Callable[[], int], still_taken: Callable[[], int], promised: int) -> int:
    """Return the bytes that one more job may count on."""
    return int(max(0, available() - still_taken() - promised) * (1 - KEPT_FREE))


def _still_to_take(job: JobFile) -> int:
    """Return what a running job is expected to take on top of what it has: its memory is not gone yet, but will be."""
    process = job.process()
    held = 0 if process is None else memory_of(process)
    return max(0, (job.spec.memory_bytes or 0) - held)


def _size(bytes_: int) -> str:
    return f"{bytes_ / 1e9:.1f} GB" if bytes_ >= 1e8 else f"{bytes_ / 1e6:.0f} MB"


def _words(name: str) -> dict[str, str]:
    """Return `key value` lines of a file about our control group; a single value has the key ""."""
    try:
        with open(f"/sys/fs/cgroup/{name}", encoding="ascii") as file:
            pairs = [line.rpartition(" ") for line in file.read().splitlines()]
    except OSError:
        return {}
    return {key: value for key, _, value in pairs}
