"""The index of runs: a table that answers questions about thousands of them at once, made from their files.

It may be deleted, damaged, locked or of another version at any time: then it is made anew from the folders, in memory
where no file can be had. Nothing is in it that the folders do not say.
"""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from luthier.runs import facts
from luthier.runs.facts import READ, Reading, Row
from luthier.runs.index_file import BUSY_STATES, COLUMNS, Table
from luthier.runs.index_search import Asked, where
from luthier.runs.job_files import OWN, JobFile
from luthier.runs.jobs import Jobs
from luthier.runs.trash import sizes_below

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FILE = "index.sqlite"
_AT_ONCE = 100
"""Rows that are written together."""
_MEASURE_SECONDS = 0.1
_MEASURE_AGAIN_SECONDS = 30.0
"""A run that grows is measured so often."""
_JOB = "job "
_OF_A_JOB = {"held": "queued", "queued": "queued", "starting": "starting", "running": "starting",
             "stopping": "stopping", "failed": facts.NEVER, "crashed": facts.NEVER}  # fmt: skip
"""State of a training without a run directory -> that of its row; trainings in other states have none."""


class Index:
    """The runs below a root. Any thread may call.

    A training that has a job and no folder yet has a row, too: `queued` or `starting`, and `never started` where the
    job failed before it made one.
    """

    def __init__(self, root: Path, *, file: bool = True) -> None:
        self.root = root
        self._table = Table(root / OWN / FILE if file else None)
        self._jobs = Jobs(root)
        self._one_at_a_time = threading.Lock()
        self._measured: dict[str, float] = {}
        self._settings: dict[Path, tuple[str, facts.Settings]] = {}
        self.rebuilding = False
        """Not all folders have been read yet."""

    # ---- made from the folders

    def refresh(self, seconds: float | None = None) -> list[str]:
        """Take over what has changed in the folders; return the ids of rows that are new, different or gone.

        With `seconds`, reading ends about then and `rebuilding` says that there is more to read: the newest runs come
        first, and the next call goes on.
        """
        end = None if seconds is None else time.monotonic() + seconds
        with self._one_at_a_time:
            known = self._table.stamps()
            self._table.is_new()  # what is missing is read now
            there = self._stamps()
            gone = [id for id in known if id not in there]
            changed = [id for id, (stamp, _) in there.items() if known.get(id, ("", ""))[0] != stamp]
            changed += [id for id, (_, state) in known.items() if state in BUSY_STATES and id in there]
            changed = sorted(dict.fromkeys(changed), key=lambda id: there[id][1], reverse=True)
            self._table.drop(gone)
            done = self._take_over(changed, there, end)
            self.rebuilding = len(done) < len(changed)
            self._measure(end)
        return [*gone, *(id for id, differs in done.items() if differs)]

    def rebuild(self) -> int:
        """Make the index anew from the folders; return how many rows it has."""
        with self._one_at_a_time:
            self._table.destroy()
        self.refresh()
        return self._table.ask("SELECT count(*) FROM runs")[0][0]

    def _take_over(self, ids: Sequence[str], there: dict[str, tuple[str, float]], end: float | None) -> dict[str, bool]:
        done: dict[str, bool] = {}
        for begin in range(0, len(ids), _AT_ONCE):
            batch = ids[begin : begin + _AT_ONCE]
            before = self._table.rows(batch)
            rows: list[dict[str, Any]] = []
            for id in batch:
                if end is not None and time.monotonic() > end and done:
                    break
                row = self._row(id, there[id][0], before.get(id))
                done[id] = _differs(row, before.get(id))
                rows.append(row)
            self._table.put(rows)
        return done

    def _stamps(self) -> dict[str, tuple[str, float]]:
        """Return for each run what changes when its files do, and when they last did."""
        found = {job.spec.run: _job_stamp(job) for job in self._trainings() if job.spec.run}
        with suppress(OSError), os.scandir(self.root) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and (stamp := _folder_stamp(entry)) is not None:
                    found[entry.name] = stamp
        return {id: stamp for id, stamp in found.items() if stamp is not None}

    def _trainings(self) -> list[JobFile]:
        """Return the jobs that train, the newest of each run last."""
        return sorted((job for job in self._jobs.files() if job.spec.kind == "train"), key=lambda job: job.created)

    def _row(self, id: str, stamp: str, before: dict[str, Any] | None) -> dict[str, Any]:
        """Return the columns of a run, going on from what the table knows of it."""
        reading = Reading(**json.loads(before["reading"])) if before and before["reading"] else Reading()
        if stamp.startswith(_JOB):
            _, job_id, state = stamp.split(" ")
            job = JobFile(self.root / OWN / "jobs" / job_id)
            settings = self._settings_of(job.folder / "config.yaml")
            row = _row_of_job(job, _OF_A_JOB[state], settings)
        else:
            settings = self._settings_of(self.root / id / "config.yaml")
            row = facts.read_row(self.root / id, settings, reading)
        row.bytes = before["bytes"] if before else None
        words = " ".join([row.id, row.name, row.notes, *row.tags, row.model, *row.data, row.objective, row.tuning])
        return {
            **asdict(row),
            "data": json.dumps(row.data, ensure_ascii=False),
            "tags": json.dumps(row.tags, ensure_ascii=False),
            "words": words.casefold(),
            "settings": settings.lines,
            "stamp": stamp,
            "reading": json.dumps(asdict(reading)),
        }

    def _settings_of(self, path: Path) -> facts.Settings:
        stamp = _stamp_of(path)
        known = self._settings.get(path)
        if known is None or known[0] != stamp:
            known = (stamp, facts.read_settings(path))
            self._settings[path] = known
        return known[1]

    def _measure(self, end: float | None) -> None:
        """Add up the files of some runs whose size is not known or has changed, for a moment."""
        until = min(time.monotonic() + _MEASURE_SECONDS, end or float("inf"))
        found: list[tuple[int, str, str]] = []
        for id, stamp, measured in self._table.unmeasured():
            if time.monotonic() > until:
                break
            if measured and time.monotonic() - self._measured.get(id, -1e9) < _MEASURE_AGAIN_SECONDS:
                continue
            self._measured[id] = time.monotonic()
            if (self.root / id).is_dir():
                found.append((sum(sizes_below(self.root / id)), stamp, id))
        self._table.put_sizes(found)

    # ---- asked

    def search(
        self,
        text: str = "",
        *,
        state: str | Sequence[str] = (),
        objective: str | Sequence[str] = (),
        model: str | Sequence[str] = (),
        tag: str | Sequence[str] = (),
        since: str = "",
        until: str = "",
        archived: bool | None = False,
        sort: str = "created",
        descending: bool = True,
        start: int = 0,
        count: int = 100,
    ) -> tuple[list[Row], int]:
        """Return a page of the runs that match, pinned ones first, and how many match in all.

        `text`: words that name, notes, tags, model or data contain, and `key:value` of settings (`rank:16`), all of
        them. `since` and `until`: when they were created, as `moment_of` reads it. `archived`: True for those only,
        None for all. Raises RunError for a column that cannot be sorted by, or what is no date.
        """
        names = (_names(state), _names(objective), _names(model), _names(tag))
        asked = Asked(text, *names, since, until, archived, sort, descending)
        condition, values, order = where(asked)
        query = f"SELECT {COLUMNS} FROM runs WHERE {condition} ORDER BY {order} LIMIT ? OFFSET ?"
        found = self._ask(query, [*values, count, start])
        total = self._ask(f"SELECT count(*) FROM runs WHERE {condition}", values)[0][0]
        return [_as_row(each) for each in found], int(total)

    def row(self, id: str) -> Row | None:
        """Return one run as its files say now; None where there is none of this id."""
        with self._one_at_a_time:
            there = {each: stamp for each, stamp in self._stamps_of(id).items() if stamp is not None}
            if there:
                self._take_over([id], there, None)
            else:
                self._table.drop([id])
        found = self._table.ask(f"SELECT {COLUMNS} FROM runs WHERE id = ?", [id])
        return _as_row(found[0]) if found else None

    def tags(self) -> list[str]:
        """Return every tag in use."""
        found = self._ask("SELECT DISTINCT value FROM runs, json_each(runs.tags) ORDER BY value")
        return [str(value) for (value,) in found]

    def models(self) -> list[str]:
        """Return every model that a run learns from."""
        return [
            str(model) for (model,) in self._ask("SELECT DISTINCT model FROM runs WHERE model != '' ORDER BY model")
        ]

    def stamps(self) -> dict[str, tuple[str, str]]:
        """Return id -> what changes when its files do, and its state, as of the last look at the folders."""
        return self._table.stamps()

    def bytes(self) -> int:
        """Return the bytes of all runs, as far as they have been measured."""
        return int(self._ask("SELECT coalesce(sum(bytes), 0) FROM runs")[0][0])

    @property
    def kept(self) -> Literal["file", "memory"]:
        """Tell where the table is: in memory where no file can be had."""
        return self._table.kept

    def close(self) -> None:
        """Let go of the file."""
        self._table.close()

    def _ask(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a question; of a table that has just been made, because the old one was not there or could
        not be used, after the folders have been read.
        """
        found = self._table.ask(query, values)
        for _ in range(2):
            if self._table.is_new():
                self.refresh(seconds=1.0)
                found = self._table.ask(query, values)
        return found

    def _stamps_of(self, id: str) -> dict[str, tuple[str, float] | None]:
        folder = self.root / id
        stamp = _stamp_of_files(str(folder)) if folder.is_dir() else None
        if stamp is None:
            jobs = [job for job in self._trainings() if job.spec.run == id]
            stamp = _job_stamp(jobs[-1]) if jobs else None
        return {id: stamp}


def _names(given: str | Sequence[str]) -> tuple[str, ...]:
    names = given.split(",") if isinstance(given, str) else given
    return tuple(name for name in names if name)


def _differs(row: dict[str, Any], before: dict[str, Any] | None) -> bool:
    return before is None or any(before[key] != value for key, value in row.items() if key not in ("stamp", "reading"))


def _as_row(found: Sequence[Any]) -> Row:
    plain: dict[str, Any] = dict(zip(COLUMNS.split(", "), found, strict=True))
    plain |= {key: bool(plain[key]) for key in ("pinned", "archived")}
    plain |= {key: json.loads(plain[key]) for key in ("data", "tags")}
    return Row(**plain)


def _row_of_job(job: JobFile, state: str, settings: facts.Settings) -> Row:
    spec, now = job.spec, job.now
    return Row(
        id=str(spec.run), name=spec.name or str(spec.run), state=state, objective=settings.objective,
        tuning=settings.tuning, model=settings.model, data=list(settings.data), step=0, total=None, loss=None,
        best=None, best_metric=None, seconds=None, bytes=None, created=job.created,
        updated=now.ended or now.launched or job.created, tags=list(spec.tags), pinned=False, archived=False,
        notes=spec.notes,
    )  # fmt: skip


def _job_stamp(job: JobFile) -> tuple[str, float] | None:
    state = job.now.state
    return (f"{_JOB}{job.id} {state}", job.created) if state in _OF_A_JOB else None


def _folder_stamp(entry: os.DirEntry[str]) -> tuple[str, float] | None:
    try:
        return _stamp_of_files(entry.path) if entry.is_dir() else None
    except OSError:
        return None


def _stamp_of_files(folder: str) -> tuple[str, float] | None:
    """Return the stamp of a run directory; None where it is none."""
    stamps = [_stamp_of(f"{folder}/{name}") for name in READ]
    # A run that was killed before it said a word has its lock and its settings.
    if not stamps[1] or not (stamps[0] or os.path.exists(f"{folder}/run.lock")):
        return None
    return " ".join(stamps), max(float(stamp.split(":")[0]) for stamp in stamps if stamp) / 1e9


def parted(stamp: str) -> tuple[list[str], tuple[str, str]]:
    """Return of a stamp what people change, the settings and notes, and what training does, the status and events."""
    status, *by_hand, events = stamp.split(" ")
    return by_hand, (status, events)


def _stamp_of(path: str | Path) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_mtime_ns}:{found.st_size}:{found.st_ino}"
