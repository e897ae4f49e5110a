"""The folder of a job: what is to be done, what became of it, and the process that does it. Files are the truth.

`<runs>/.luthier/jobs/<id>/` holds job.json (never changed), state.json (written whole, by whoever holds the lock of the
queue), process.json (by the process itself), out.json, log.txt and progress.json (by the command).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, cast

from luthier.core.errors import RunError
from luthier.core.log import printable
from luthier.core.paths import beside, sync_folder, write_whole
from luthier.runs.begin import CLAIM
from luthier.runs.launch import LOG, OUT, PROGRESS
from luthier.runs.process import Identity

if TYPE_CHECKING:
    from pathlib import Path

Kind = Literal["train", "evaluate", "export", "serve", "audit"]
State = Literal[
    "held", "queued", "starting", "running", "stopping", "done", "stopped", "failed", "crashed", "cancelled"
]
When = Literal["now", "queue", "hold"]
WAITING: tuple[State, ...] = ("held", "queued")
ACTIVE: tuple[State, ...] = ("starting", "running", "stopping")

OWN = ".luthier"
"""Folder below the runs root that holds jobs, the queue, the index and what was deleted lately."""
JOB, STATE = "job.json", "state.json"
LARGEST_OUT_BYTES = 8 << 20
_TAIL_BYTES = 64 << 10
SCHEMA = 1
_IN_THE_FOLDER = re.compile(r"((?:[\w.]+=)?)\{job\}/")
_RUN_OR_PORT = re.compile(r"([\w.]+=)\{(run|port)\}")


def _no_text() -> dict[str, str]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What is to be done. The same request_id twice is one job.

    In `command`, `{job}/NAME` and `key={job}/NAME` are files of the job's folder, `key={run}` is the run directory,
    `key={port}` a free port.
    """

    request_id: str
    """8 to 64 letters, digits, `_` and `-`; the id of the job, and the name of its folder."""
    kind: Kind
    command: tuple[str, ...]
    """The whole command line, as a list."""
    name: str = ""
    run: str | None = None
    """Name of the run directory that it trains, or that its first source lies in."""
    fresh_run: bool = False
    """`run` is a wish: the first name like it that is free is taken."""
    files: dict[str, str] = field(default_factory=_no_text)
    """Name -> text of files that the command reads from the job's folder; only their owner may read them."""
    environment: dict[str, str] = field(default_factory=_no_text)
    """Variables on top of the server's."""
    folder: str | None = None
    """Where the command runs; none is where the server does."""
    when: When = "queue"
    memory_bytes: int | None = None
    notes: str = ""
    tags: tuple[str, ...] = ()
    tries: int = 1
    retry_of: str | None = None


@dataclass(slots=True)
class Now:
    """state.json: what became of a job."""

    state: State = "queued"
    reason: str = ""
    asked: Literal["", "stop", "kill"] = ""
    """What a person asked for while it ran."""
    process: dict[str, Any] | None = None
    """Who was started; process.json, written by the process itself, stands above it."""
    launches: int = 0
    """How often a process was started; more than once only where nobody saw it begin."""
    launched: float | None = None
    started: float | None = None
    ended: float | None = None
    """Seconds since the epoch."""
    exit_code: int | None = None
    error: dict[str, Any] | None = None
    port: int | None = None
    noted: bool = False
    """Name, notes and tags have been handed to the run directory."""


_SPEC = {each.name for each in fields(JobSpec)}
_NOW = {each.name for each in fields(Now)}


class JobFile:
    """One job's folder, read again only where a file has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = _read(folder / JOB)
        if facts is None:
            raise RunError(f"{folder / JOB} is missing or damaged", code="job_damaged")
        self.created = float(facts.get("created") or 0.0)
        self.spec = JobSpec(**{**{k: v for k, v in facts.items() if k in _SPEC}, **_tuples(facts)})
        self._now = Now()
        self._state = str(folder / STATE)
        self._stamp: tuple[int, int, int] = (0, 0, 0)

    @property
    def id(self) -> str:
        """Return its id, which is the name of its folder."""
        return self.folder.name

    @property
    def now(self) -> Now:
        """Return what state.json says; a damaged one counts as a job that waits, because a claim keeps it from running
        twice.
        """
        if self._now.ended is not None:
            return self._now  # for good
        try:
            facts = os.stat(self._state)
            stamp = (facts.st_mtime_ns, facts.st_ino, facts.st_size)
        except OSError:
            return self._now
        if stamp != self._stamp:
            plain = _read(self.folder / STATE) or {}
            self._now, self._stamp = Now(**{k: v for k, v in plain.items() if k in _NOW}), stamp
        return self._now

    def write(self, now: Now) -> None:
        """Replace state.json."""
        write_whole(self.folder / STATE, json.dumps({"schema": SCHEMA, **asdict(now)}, indent=1))

    def claimed(self) -> Identity | None:
        """Return the process that does the job, as it says itself."""
        return Identity.from_dict(_read(self.folder / CLAIM))

    def process(self) -> Identity | None:
        """Return the process of the job: as it says itself, or else as who started it says."""
        return self.claimed() or Identity.from_dict(self.now.process)

    def document(self, most_bytes: int = LARGEST_OUT_BYTES) -> dict[str, Any] | None:
        """Return the last JSON object that the command printed; None where it printed none, or more than that."""
        path = self.folder / OUT
        try:
            if path.stat().st_size > most_bytes:
                return None
            lines = path.read_bytes().splitlines()
        except OSError:
            return None
        return next((found for line in reversed(lines) if (found := _parsed(line)) is not None), None)

    def tail(self, lines: int) -> list[str]:
        """Return the last lines of the log, at most 64 KiB of it."""
        path = self.folder / LOG
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return []
        return text.splitlines()[-lines:]

    def progress(self) -> tuple[float | None, str]:
        """Return the share done and what the command says that it does."""
        found = _read(self.folder / PROGRESS) or {}
        done, total = found.get("done"), found.get("total")
        share = min(1.0, done / total) if isinstance(done, int) and isinstance(total, int) and total > 0 else None
        return share, str(found.get("doing") or "")

    @property
    def wants_port(self) -> bool:
        """Tell whether the command is given a port."""
        found = [_RUN_OR_PORT.fullmatch(argument) for argument in self.spec.command]
        return any(each is not None and each[2] == "port" for each in found)

    def command(self, root: Path, port: int | None) -> list[str]:
        """Return the command line with the places of this job filled in."""
        run = str(root / self.spec.run) if self.spec.run else ""
        return [_filled(argument, self.folder, run, port) for argument in self.spec.command]


def create(jobs: Path, spec: JobSpec, created: float) -> JobFile | None:
    """Make the folder of a job, whole or not at all; None where there is one of this id already.

    Raises OSError where there is no space.
    """
    jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder, temporary = jobs / spec.request_id, beside(jobs / spec.request_id)
    temporary.mkdir(mode=0o700)
    try:
        for name, text in spec.files.items():
            _write_private(temporary / name, text)
        plain = {**asdict(spec), "schema": SCHEMA, "id": spec.request_id, "created": created}
        write_whole(temporary / JOB, json.dumps(plain, indent=1, ensure_ascii=False))
        state: State = "held" if spec.when == "hold" else "queued"
        write_whole(temporary / STATE, json.dumps({"schema": SCHEMA, **asdict(Now(state))}, indent=1))
        sync_folder(temporary)
        temporary.rename(folder)  # onto a folder with files it fails: whoever is first has made the job
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        if (folder / JOB).exists():
            return None
        raise
    sync_folder(jobs)
    return JobFile(folder)


def _filled(argument: str, folder: Path, run: str, port: int | None) -> str:
    if found := _IN_THE_FOLDER.match(argument):
        return f"{found[1]}{folder}/{argument[found.end() :]}"
    if found := _RUN_OR_PORT.fullmatch(argument):
        return found[1] + (run if found[2] == "run" else str(port or 0))
    return argument


def _write_private(path: Path, text: str) -> None:
    if "/" in path.name or path.name in (JOB, STATE, CLAIM, OUT, LOG, PROGRESS):
        raise RunError(f"a job has no file called {printable(path.name)}")
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _tuples(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(facts[name]) for name in ("command", "tags") if name in facts}


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return cast("dict[str, Any]", found) if isinstance(found, dict) else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return _parsed(path.read_bytes())
    except OSError:
        return None
