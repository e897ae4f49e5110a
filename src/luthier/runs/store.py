"""The run directory: settings, status, events, samples, log. Writers append or rename; readers tolerate half a line."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from luthier.core.errors import RunError
from luthier.core.faults import fault_point
from luthier.core.log import to_file
from luthier.core.paths import write_whole
from luthier.runs.process import Identity

if TYPE_CHECKING:
    from collections.abc import Iterator

FINAL_STATES = ("done", "stopped", "failed")


def plain_json(value: dict[str, Any]) -> str:
    """Encode as one JSON line with finite numbers: NaN and Infinity become null beside "nonfinite": true."""
    clean = {key: None if isinstance(x, float) and not math.isfinite(x) else x for key, x in value.items()}
    if clean != value and any(isinstance(x, float) and not math.isfinite(x) for x in value.values()):
        clean["nonfinite"] = True
    return json.dumps(clean, ensure_ascii=False, allow_nan=False)


def slug(name: str) -> str:
    """Return a file name made from any display name.

    >>> slug("my run / 2")
    'my-run-2'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "run"


@dataclass(slots=True)
class RunStore:
    """A run directory that this process holds the lock of."""

    path: Path
    identity: Identity = field(default_factory=Identity.here)
    status: dict[str, Any] = field(default_factory=dict[str, Any])
    listeners: list[Callable[[dict[str, Any]], None]] = field(default_factory=list[Callable[[dict[str, Any]], None]])
    """Called with each event once it is written."""
    _lock: IO[str] | None = None
    _events: IO[str] | None = None
    _log: AbstractContextManager[None] | None = None
    _seq: int = 0
    _began: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, path: Path, config_text: str) -> RunStore:
        """Take the run directory at `path`, making it when it is not there.

        Raises RunError when another living process holds it.
        """
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        run = cls(path)
        run._take_lock()
        for left in [*path.glob("tmp-*"), *path.glob("trash-*")]:
            shutil.rmtree(left, ignore_errors=True)
        for left in path.glob("*.tmp"):
            left.unlink(missing_ok=True)
        write_whole(path / "config.yaml", config_text)
        run._seq = _repair(path / "events.jsonl")
        _repair(path / "samples.jsonl")
        run._events = (path / "events.jsonl").open("a", encoding="utf-8")
        run._log = to_file(path / "log.txt")
        run._log.__enter__()
        return run

    def _take_lock(self) -> None:
        lock = self.path / "run.lock"
        # Close-on-exec is Python's default: a spawned child must not keep the lock of a dead parent.
        self._lock = lock.open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = _parse(self._lock.read())
            self._lock.close()
            started = datetime.fromtimestamp(holder.get("started", 0), UTC).isoformat(timespec="seconds")
            raise RunError(
                f"{self.path} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')} "
                f"since {started}; wait for it, stop it, or choose another output_dir",
                code="run_locked",
            ) from None
        self._lock.truncate(0)
        self._lock.write(json.dumps(self.identity.as_dict()))
        self._lock.flush()

    def set_status(self, state: str, **facts: Any) -> None:
        """Replace status.json; facts that are not named keep their value."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.status = {
            **self.status,
            **facts,
            "schema": 1,
            "state": state,
            "pid": self.identity.pid,
            "process": self.identity.as_dict(),
            "updated": now,
            "seconds": round(time.monotonic() - self._began, 3),
        }
        self.status.setdefault("started", now)
        write_whole(self.path / "status.json", json.dumps(self.status, indent=1, ensure_ascii=False, default=str))

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to events.jsonl; `seq` grows by one and is never used again."""
        assert self._events is not None
        self._seq += 1
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        mono = round(time.monotonic() - self._began, 4)
        line = plain_json({"seq": self._seq, "time": now, "mono": mono, "kind": kind, **values})
        fault_point("events.append")
        self._events.write(line + "\n")
        self._events.flush()
        for listen in self.listeners:
            listen(json.loads(line))

    def sample(self, **values: Any) -> None:
        """Append one generated answer to samples.jsonl."""
        with (self.path / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.write(plain_json(values) + "\n")

    def drop_samples(self, after: int) -> None:
        """Take answers of later steps out of samples.jsonl: a run that goes on from `after` gives them again."""
        path = self.path / "samples.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if json.loads(line).get("step", 0) <= after]
        if len(kept) < len(lines):
            write_whole(path, "".join(kept))

    def close(self) -> None:
        """Let go of the lock and of every open file."""
        if self._log is not None:
            self._log.__exit__(None, None, None)
        for file in (self._events, self._lock):
            if file is not None:
                file.close()


def _parse(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    except ValueError:
        return {}


def _repair(path: Path) -> int:
    """Cut half a line off the end of a JSON lines file; return the largest `seq` in it."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        raw = file.read()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            file.truncate(len(whole))
            file.flush()
            os.fsync(file.fileno())
    return max((int(event.get("seq", 0)) for event in read_lines(path)), default=0)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON lines file; half lines and damaged ones are left out."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for raw in lines:
            value = _parse(raw.decode("utf-8", "replace").strip("\0"))
            if value:
                yield value


def read_events(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return the events of a run; where a resumed run repeated a step, the later record stands."""
    events = [event for event in read_lines(run / "events.jsonl") if kind in (None, event.get("kind"))]
    latest = {(event.get("kind"), event["step"]): event["seq"] for event in events if "step" in event}
    return [e for e in events if "step" not in e or latest[e.get("kind"), e["step"]] == e["seq"]]


def read_status(run: Path) -> dict[str, Any]:
    """Return status.json; a run whose process is gone without a word is "crashed"."""
    try:
        status = _parse((run / "status.json").read_text(encoding="utf-8", errors="replace"))
    except OSError:  # not there (any more)
        return {}
    holder = Identity.from_dict(status.get("process"))
    if status and status.get("state") not in FINAL_STATES and (holder is None or not holder.is_alive()):
        status["state"] = "crashed"
    return status


def is_run(path: Path) -> bool:
    """Tell whether `path` is a run directory."""
    return (path / "status.json").is_file() and (path / "config.yaml").is_file()


def list_runs(root: Path) -> list[Path]:
    """Return run directories directly under `root`, newest first."""
    runs = [path for path in root.iterdir() if is_run(path)] if root.is_dir() else []
    return sorted(runs, key=lambda path: (path / "status.json").stat().st_mtime, reverse=True)


def checkpoint_step(path: Path) -> int | None:
    """Return the step in a name like checkpoint-12."""
    number = path.name.removeprefix("checkpoint-")
    return int(number) if path.name.startswith("checkpoint-") and number.isdigit() else None


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, newest first, verified or not."""
    found = [path for path in run.glob("checkpoint-*") if path.is_dir() and checkpoint_step(path) is not None]
    return sorted(found, key=lambda path: checkpoint_step(path) or 0, reverse=True)


def new_run_path(root: Path, name: str) -> Path:
    """Return a path runs/<time>-<name> that does not exist yet."""
    stem = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{slug(name)}"
    candidates = [root / stem, *(root / f"{stem}-{number}" for number in range(2, 1000))]
    return next(path for path in candidates if not path.exists())
