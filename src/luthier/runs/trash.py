"""Deleting a run: a rename first, undone for half a minute, then the removal. Never half a run, never by a link."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core.errors import RunError
from luthier.core.faults import fault_point
from luthier.core.log import printable
from luthier.core.paths import sync_folder
from luthier.runs import queue
from luthier.runs.job_files import ACTIVE, OWN, WAITING
from luthier.runs.jobs import Jobs
from luthier.runs.store import FINAL_STATES, list_checkpoints, read_status

if TYPE_CHECKING:
    from collections.abc import Generator

UNDO_SECONDS = 30.0
_GOING = "going-"
"""In front of what is being removed: no undo finds it."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What deleting a run takes away."""

    bytes: int
    files: int
    checkpoints: int
    exports: list[str]


@dataclass(frozen=True, slots=True)
class Entry:
    """A run that was deleted lately."""

    path: Path
    run: str
    deleted: float
    """Seconds since the epoch."""

    @property
    def undo_until(self) -> float:
        """Return when it is removed, in seconds since the epoch."""
        return self.deleted + UNDO_SECONDS


def contents(run: Path) -> Contents:
    """Count what lies in a folder; links count as themselves."""
    found = sizes_below(run)
    exports = run / "export"
    names = sorted(each.name for each in exports.iterdir()) if exports.is_dir() and not exports.is_symlink() else []
    return Contents(sum(found), len(found), len(list_checkpoints(run)), names)


def delete(root: Path, name: str) -> Entry:
    """Put a run into the trash. Raises RunError while it is in use, and where there is no such run."""
    run = root / name
    if not is_one_name(name) or not (run.is_dir() or run.is_symlink()):
        raise RunError(f"there is no run called {printable(name)} in {root}", code="run_missing")
    with _unused(root, name), _held(run):
        trash = _folder(root)
        now = int(time.time())
        entry = Entry(trash / f"{now}-{secrets.token_hex(4)}-{name}", name, float(now))
        fault_point("trash.before")
        run.rename(entry.path)
        fault_point("trash.renamed")
    sync_folder(root)
    sync_folder(trash)
    return entry


def undelete(root: Path, name: str) -> Path:
    """Bring back the run that was deleted last under this name. Raises RunError where it is gone or replaced."""
    found = [entry for entry in entries(root) if entry.run == name]
    if not found:
        raise RunError(f"{printable(name)} is not in the trash (any more); it is kept {UNDO_SECONDS:.0f} s",
                       code="run_missing")  # fmt: skip
    target = root / name
    if target.exists() or target.is_symlink():
        raise RunError(f"{target} is there again; rename it, then bring the old one back", code="run_exists")
    found[-1].path.rename(target)
    sync_folder(root)
    return target


def entries(root: Path) -> list[Entry]:
    """Return what can be brought back, oldest first."""
    trash = root / OWN / "trash"
    found = [_entry(path) for path in trash.iterdir()] if trash.is_dir() else []
    return sorted((entry for entry in found if entry is not None), key=lambda entry: (entry.deleted, entry.path.name))


def purge(root: Path, older_than: float = UNDO_SECONDS) -> int:
    """Remove what was deleted longer ago than that, and what an earlier removal has left; return how many."""
    trash = root / OWN / "trash"
    for entry in entries(root):
        # After a jump of the clock into the past nothing would ever be old enough.
        if abs(time.time() - entry.deleted) >= older_than:
            with suppress(FileNotFoundError):  # another process was quicker
                entry.path.rename(entry.path.with_name(_GOING + entry.path.name))
    going = [path for path in trash.iterdir() if path.name.startswith(_GOING)] if trash.is_dir() else []
    for path in going:
        fault_point("trash.removing")
        _remove(path)
    return len(going)


def is_one_name(name: str) -> bool:
    """Tell whether a text is the name of one visible thing in a folder."""
    return bool(name) and not name.startswith(".") and not set(name) & {"/", "\\", "\0"}


def sizes_below(folder: Path) -> list[int]:
    """Return the size of every file below a folder; a folder behind a link is not looked into."""
    sizes: list[int] = []
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.lstat(os.path.join(place, name)).st_size)
            except OSError:
                continue
    return sizes


def _folder(root: Path) -> Path:
    trash = root / OWN / "trash"
    trash.mkdir(parents=True, exist_ok=True, mode=0o700)
    return trash


def _entry(path: Path) -> Entry | None:
    when, _, rest = path.name.partition("-")
    _, _, run = rest.partition("-")
    return Entry(path, run, float(when)) if when.isdigit() and run else None


@contextmanager
def _unused(root: Path, name: str) -> Generator[None]:
    """Keep jobs that train in a run from coming for the time of the block. Raises RunError where there is one."""
    jobs = Jobs(root)
    jobs.settle()
    with queue.locked(root):
        job = jobs.for_run(name)
        if job is not None and job.state in (*WAITING, *ACTIVE):
            raise RunError(f"job {job.id} ({job.state}) trains {name}; cancel or stop it first", code="run_locked")
        yield


@contextmanager
def _held(run: Path) -> Generator[None]:
    held = None if run.is_symlink() else _hold(run)
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def _hold(run: Path) -> int | None:
    """Take the lock of a run, so that nobody begins to train in it. Raises RunError where somebody does."""
    state = read_status(run).get("state")
    lock = run / "run.lock"
    held = None
    try:
        if lock.is_file() and not lock.is_symlink():
            held = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        state = "running"
    if state is not None and state not in (*FINAL_STATES, "crashed"):
        if held is not None:
            os.close(held)
        raise RunError(f"{run} is in use ({state}); stop it first", code="run_locked")
    return held


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
