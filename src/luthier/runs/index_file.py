"""The table of the index, in a file of SQLite or in memory: opened anew whenever the file is not what it was."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from luthier.core.faults import fault_point
from luthier.core.log import say_once
from luthier.runs.facts import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

T = TypeVar("T")
VERSION = 1
BUSY_STATES = frozenset({"starting", "running", "saving", "stopping"})
"""States of runs whose process may end without writing anything."""
COLUMNS = ", ".join(each.name for each in fields(Row))
_MORE = ("words", "settings", "stamp", "reading", "sized")
_MADE = f"""
CREATE TABLE IF NOT EXISTS runs ({COLUMNS.replace("id,", "id TEXT PRIMARY KEY,", 1)}, {", ".join(_MORE)});
CREATE INDEX IF NOT EXISTS runs_created ON runs (created);
PRAGMA user_version = {VERSION};
"""
_NETWORK = frozenset({
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "fuse.sshfs",
    "fuse.glusterfs", "fuse.s3fs", "fuse.rclone",
})  # fmt: skip
"""Kinds of file systems whose locks SQLite cannot rely on."""
_AGAIN_SECONDS = 30.0
_BUSY_MILLISECONDS = 1000


class Table:
    """Rows of runs. Whatever is wrong with the file, questions are answered."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._is_new = False
        self._not_before = 0.0
        """Moment at which a file is tried again, where one could not be used."""

    @property
    def kept(self) -> Literal["file", "memory"]:
        """Tell where the rows are."""
        with self._lock:
            self._open()
            return "memory" if self._inode is None else "file"

    def is_new(self) -> bool:
        """Tell, once, that the table has been made empty since the last question."""
        with self._lock:
            self._open()
            was, self._is_new = self._is_new, False
            return was

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a question."""
        return self._with(lambda connection: connection.execute(query, values).fetchall())

    def stamps(self) -> dict[str, tuple[str, str]]:
        """Return id -> stamp of its files and state."""
        return {id: (stamp, state) for id, stamp, state in self.ask("SELECT id, stamp, state FROM runs")}

    def rows(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return id -> all columns."""
        marks = ", ".join("?" * len(ids))
        names = [*COLUMNS.split(", "), *_MORE]
        found = self.ask(f"SELECT {', '.join(names)} FROM runs WHERE id IN ({marks})", ids)
        return {each[0]: dict(zip(names, each, strict=True)) for each in found}

    def put(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows, or replace them."""
        names = [*COLUMNS.split(", "), *(each for each in _MORE if each != "sized")]
        marks = ", ".join("?" * len(names))
        updates = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        query = f"INSERT INTO runs ({', '.join(names)}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {updates}"
        self._write(query, [[row[name] for name in names] for row in rows])

    def drop(self, ids: Sequence[str]) -> None:
        """Take rows out."""
        self._write("DELETE FROM runs WHERE id = ?", [[id] for id in ids])

    def unmeasured(self) -> list[tuple[str, str, str | None]]:
        """Return (id, stamp, stamp when it was measured) of runs whose size is not known, or was before a change."""
        return self.ask("SELECT id, stamp, sized FROM runs WHERE sized IS NOT stamp ORDER BY sized IS NOT NULL")

    def put_sizes(self, sizes: Sequence[tuple[int, str, str]]) -> None:
        """Note (bytes, stamp, id)."""
        self._write("UPDATE runs SET bytes = ?, sized = ? WHERE id = ?", sizes)

    def destroy(self) -> None:
        """Delete the file, so that it is made anew."""
        with self._lock:
            self.close()
            self._not_before = 0.0
            if self._path is not None:
                for end in ("", "-wal", "-shm"):
                    with suppress(OSError):
                        self._path.with_name(self._path.name + end).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection, self._inode = None, None

    # ---- the file

    def _write(self, query: str, many: Sequence[Sequence[Any]]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            with connection:
                fault_point("index.write")
                connection.executemany(query, many)

        if many:
            self._with(work)

    def _with(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._lock:
            for _ in range(2):
                try:
                    return work(self._open())
                except (sqlite3.Error, OSError) as error:
                    self._give_up(error)
            return work(self._open())

    def _open(self) -> sqlite3.Connection:
        in_memory = self._inode is None
        if self._connection is not None:
            wait = in_memory and (self._path is None or time.monotonic() < self._not_before)
            if wait or (not in_memory and self._inode == self._inode_now()):
                return self._connection
            self.close()
        connection = None if time.monotonic() < self._not_before else self._open_file()
        if connection is None:
            connection = sqlite3.connect(":memory:", check_same_thread=False)
            connection.executescript(_MADE)
            self._is_new = True
        self._connection = connection
        return connection

    def _open_file(self) -> sqlite3.Connection | None:
        if self._path is None:
            return None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            kind = file_system(self._path.parent)
            if kind in _NETWORK:
                self._in_memory(f"the index of runs is kept in memory: {self._path.parent} is on {kind}", float("inf"))
                return None
            connection = sqlite3.connect(self._path, timeout=_BUSY_MILLISECONDS / 1000, check_same_thread=False)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
            return self._open_file() if time.monotonic() >= self._not_before else None
        self._inode = self._inode_now()
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make the table where there is none. Raises sqlite3.DatabaseError for another version's."""
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        names = [name for _, name, *_ in connection.execute("PRAGMA table_info(runs)")]
        if version not in (0, VERSION) or (version == VERSION and names != [*COLUMNS.split(", "), *_MORE]):
            raise sqlite3.DatabaseError(f"the index is of version {version}")
        if version == 0:
            connection.executescript(_MADE)
            self._is_new = True

    def _give_up(self, error: Exception) -> None:
        """Delete a file that is damaged; go on in memory for a while where it is locked, or cannot be written."""
        text = str(error)
        usable_later = isinstance(error, (sqlite3.OperationalError, OSError)) and "no such" not in text
        if usable_later:
            self._in_memory(f"the index of runs is kept in memory for now: {text} ({self._path})", _AGAIN_SECONDS)
        elif isinstance(error, sqlite3.ProgrammingError):
            raise error
        else:
            self.destroy()

    def _in_memory(self, said: str, seconds: float) -> None:
        say_once(said)
        self.close()
        self._not_before = time.monotonic() + seconds

    def _inode_now(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path) if self._path is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_dev, found.st_ino)


def file_system(folder: Path) -> str:
    """Return the kind of file system that a folder is on, as the kernel calls it; "" where it does not tell."""
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
            mounts = [line.split()[1:3] for line in file]
    except OSError:
        return ""
    place = f"{os.path.realpath(folder)}/"
    found = [(len(point), kind) for point, kind in mounts if place.startswith(f"{point.rstrip('/')}/")]
    return max(found, default=(0, ""))[1]
