"""Where each row of a file begins: any page of a large file is read without what lies before it.

Rows are those of `sources.read_rows`, in the same order: row 7 here is the row that training counts as its eighth.
An index is made once for each version of a file and kept in the cache folder.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import stat
import threading
import time
from array import array
from dataclasses import dataclass
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, BinaryIO

import numpy as np

from luthier.core.errors import DataError, LuthierError
from luthier.core.log import first_line, logger, printable
from luthier.core.paths import cache_folder, replacing
from luthier.data.row_scan import LARGEST_ROW_BYTES, PART_BYTES, SCANNERS, Entry, TableLines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Opener = Callable[[Path], int]
    """Opens a plain file for reading, and returns its descriptor."""

SHOWN_BYTES = 100_000
"""Of a row that is too large, so much is shown, as text."""
_ENTRY_BYTES = 24
_AT_ONCE = 1 << 16
"""Entries that are written at once."""
_MB = LARGEST_ROW_BYTES // 1_000_000
_TOO_LARGE = {
    ".jsonl": "one JSON object a line is expected. A list ([...]) belongs into a .json file; between objects there are "
    "line breaks",
    ".json": "nothing behind it is shown where the file is a list. Large data is kept as JSON lines, one object a "
    "line: jq -c '.[]' FILE.json > FILE.jsonl",
    ".csv": "nothing behind it is shown. A quote that is never closed, or a byte that is not UTF-8, makes such rows",
    ".txt": "one text a line is expected",
}
"""Suffix -> what is wrong with a row that is too large."""
TABLES = (".parquet", ".arrow")
KINDS = (*SCANNERS, *TABLES)


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as it stands in a file."""

    line: int
    """From 1 on; of tables, the number of the row."""
    value: Any
    """What was read; text where that was not possible."""
    broken: str = ""
    """Why it is no row."""


def open_plain(path: Path) -> int:
    """Open a plain file for reading; return its descriptor. Raises DataError where there is none."""
    try:
        # A pipe would keep the one who opens it waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there, or no plain file", code="data_missing") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DataError(f"{path} is not there, or no plain file", code="data_missing")
    return descriptor


class RowFile:
    """Rows of one file, by place.

    Until the index is there, pages at the beginning are read by scanning from the first byte, as far as a row that is
    too large. Whenever the file is opened, `opener` does it: it may refuse what has come to lie at this path.
    """

    def __init__(self, path: Path, opener: Opener = open_plain) -> None:
        if path.suffix not in KINDS:
            raise DataError(f"{path.name}: rows are read from {', '.join(KINDS)} files", code="data_kind_of_file")
        self.path, self._opener = path, opener
        with self.open() as file:
            self.version = _version(os.fstat(file.fileno()))
        self._ready = threading.Event()
        self._entries: np.ndarray | None = None
        self._table: Any = None
        self._header: list[str] | None = None

    def open(self) -> BinaryIO:
        """Open the file. Raises what its opener raises."""
        return os.fdopen(self._opener(self.path), "rb", PART_BYTES)

    @property
    def total(self) -> int | None:
        """Return how many rows there are; None while they are counted."""
        if self.path.suffix in TABLES:
            return self.table().num_rows
        return None if self._entries is None else len(self._entries)

    def is_current(self) -> bool:
        """Tell whether the file is what it was."""
        try:
            return _version(self.path.stat()) == self.version
        except OSError:
            return False

    def build(self) -> None:
        """Read the index from the cache, or make it and keep it there."""
        if self.path.suffix in TABLES or self._entries is not None:
            self._ready.set()
            return
        try:
            with self.open() as file:
                self._entries = self._indexed(file)
        finally:
            self._ready.set()

    def _indexed(self, file: BinaryIO) -> np.ndarray:
        """Return (first byte, byte behind, line) of every row, [R, 3]."""
        cached, scan = _cache_file(self.path, _version(os.fstat(file.fileno()))), SCANNERS[self.path.suffix]
        try:
            if not cached.is_file():
                _make(scan(file, brief=False), cached)
            return np.load(cached, mmap_mode="r")
        except (OSError, ValueError) as error:
            # A full disk must not hide the rows; the index then lives as long as this object.
            logger.warning("the row index of %s is not kept: %s", self.path.name, first_line(error))
            file.seek(0)
            return _as_array(scan(file, brief=False))

    def wait(self, seconds: float) -> bool:
        """Wait for the index; tell whether it is there."""
        return self._ready.wait(seconds)

    def entries(self, start: int, count: int) -> list[Entry]:
        """Return where rows `start`, `start` + 1, ... stand, at most `count`."""
        if self._entries is not None:
            return [(int(a), int(b), int(c)) for a, b, c in self._entries[start : start + count]]
        with self.open() as file:
            return list(islice(SCANNERS[self.path.suffix](file, brief=True), start, start + count))

    def rows(self, start: int, count: int) -> list[StoredRow]:
        """Return rows by their places."""
        return list(self.each(start, count))

    def each(self, start: int, count: int) -> Iterator[StoredRow]:
        """Yield rows by their places, one at a time."""
        if self.path.suffix in TABLES:
            for place, value in enumerate(self.table().each(start, count), start):
                yield StoredRow(place + 1, value)
            return
        with self.open() as file:
            for entry in self.entries(start, count):
                yield self._read(file, entry)

    def parts(self, file: BinaryIO, entry: Entry) -> Iterator[bytes]:
        """Yield the bytes of a row of an open file, in parts."""
        file.seek(entry[0])
        left = entry[1] - entry[0]
        while left > 0 and (part := file.read(min(left, PART_BYTES))):
            left -= len(part)
            yield part

    def raw(self, file: BinaryIO, entry: Entry) -> bytes:
        """Return the bytes of a row of an open file, as far as rows may go."""
        file.seek(entry[0])
        return file.read(min(entry[1] - entry[0], LARGEST_ROW_BYTES))

    def row_of_line(self, line: int) -> int | None:
        """Return the place of the row that begins on a line; None where none does, or it is not known yet."""
        if self.path.suffix in TABLES:
            return line - 1
        if self._entries is None or not len(self._entries):
            return None
        at = int(np.searchsorted(self._entries[:, 2], line))
        return at if at < len(self._entries) and self._entries[at, 2] == line else None

    def find(self, text: str, start: int, count: int, seconds: float) -> tuple[list[int], int | None]:
        """Return places of rows from `start` on that hold `text`, and where the search stopped before the end.

        Letters of English are found in either case. Of rows too large to be parsed only the beginning is read. It
        stops after `count` rows or `seconds`.
        """
        until, found, place = time.monotonic() + seconds, list[int](), start - 1
        for place, holds in self._matches(text, start):
            if holds:
                found.append(place)
            if len(found) >= count or (place % 64 == 0 and time.monotonic() > until):
                return found, place + 1
        return found, None if self._ends_at(place) else place + 1

    def _ends_at(self, place: int) -> bool:
        """Tell whether no row is known to lie behind one that was the last to be read; False where that is not sure."""
        if self.path.suffix in TABLES or self._entries is not None:
            return True
        return not any(end - begin > LARGEST_ROW_BYTES for begin, end, _ in self.entries(place, 1))

    def check_whole(self) -> None:
        """Raise DataError where rows are known only up to one that is too large, as in lists and tables of text."""
        if self.path.suffix not in (".json", ".csv") or not self.total:
            return
        ((begin, end, line),) = self.entries(self.total - 1, 1)
        if end - begin > LARGEST_ROW_BYTES:
            raise DataError(
                f"{self.path}:{line}: a row of more than {_MB} MB, behind which no row of a list or table is known; "
                "keep the data as JSON lines (.jsonl)",
                code="data_row_too_large",
            )

    def _matches(self, text: str, start: int) -> Iterator[tuple[int, bool]]:
        if self.path.suffix in TABLES:
            for place, row in enumerate(self.each(start, self.table().num_rows), start):
                yield place, text.lower() in str(row.value).lower()
            return
        needles = {text.encode("utf-8", "surrogatepass").lower(), json.dumps(text)[1:-1].encode().lower()}
        with self.open() as file:
            place = start
            while entries := self.entries(place, 1024):
                for entry in entries:
                    raw = self.raw(file, entry).lower()
                    yield place, any(needle in raw for needle in needles)
                    place += 1

    def header(self) -> list[str]:
        """Return the columns of a csv file."""
        if self._header is None:
            with self.open() as file:
                try:
                    self._header = next((each for each in csv.reader(TableLines(file, "replace")) if each), [])
                except csv.Error:
                    self._header = []
        return self._header

    def table(self) -> Any:
        """Return a reader of a parquet or arrow file. Raises DataError where it is damaged."""
        if self._table is None:
            from luthier.data.row_tables import open_table

            self._table = open_table(self.open(), self.path.name)
        return self._table

    def _read(self, file: BinaryIO, entry: Entry) -> StoredRow:
        begin, end, line = entry
        if end - begin > LARGEST_ROW_BYTES:
            start = self.raw(file, (begin, begin + SHOWN_BYTES, line)).decode("utf-8", "replace")
            return StoredRow(line, start, f"a row of more than {_MB} MB; {_TOO_LARGE[self.path.suffix]}")
        raw = self.raw(file, entry)
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            text = raw.decode("utf-8", "backslashreplace")
            return StoredRow(line, text, f"not UTF-8: byte 0x{raw[error.start]:02x} at {error.start}")
        if self.path.suffix == ".txt":
            return StoredRow(line, {"text": text})
        return self._record(text, line) if self.path.suffix == ".csv" else _object(text, line)

    def _record(self, text: str, line: int) -> StoredRow:
        names = self.header()
        try:
            lines = csv.reader(io.StringIO(text, newline=""), strict=True)
            fields = next((each for each in lines if each), [])
        except csv.Error as error:
            return StoredRow(line, text, str(error))
        if len(fields) != len(names):
            return StoredRow(line, text, f"expected {len(names)} fields, found {len(fields)}; quote commas")
        return StoredRow(line, dict(zip(names, fields, strict=True)))


def _object(text: str, line: int) -> StoredRow:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return StoredRow(line, text, f"not JSON: {printable(error, 120)}")
    if not isinstance(value, dict):
        return StoredRow(line, text, f"expected a JSON object, found {printable(value, 40)}")
    return StoredRow(line, value)


def _version(facts: os.stat_result) -> str:
    return f"{facts.st_dev}-{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}"


def _cache_file(path: Path, version: str) -> Path:
    name, of_version = (hashlib.sha256(text.encode()).hexdigest()[:20] for text in (str(path.resolve()), version))
    return cache_folder("rows", f"{name}-{of_version}.npy")


def _as_array(entries: Iterator[Entry]) -> np.ndarray:
    found = array("q")
    for entry in entries:
        found.extend(entry)
    return np.array(found, np.int64).reshape(-1, 3)


def _make(entries: Iterator[Entry], cached: Path) -> None:
    """Write entries as a numpy file of shape [R, 3]; few of them are in memory at a time."""
    with replacing(cached) as temporary, temporary.open("wb") as file:
        _write_header(file, 0)
        begin = file.tell()
        while len(part := _as_array(islice(entries, _AT_ONCE))):
            file.write(part.tobytes())
        rows = (file.tell() - begin) // _ENTRY_BYTES
        file.seek(0)
        _write_header(file, rows)
    for other in cached.parent.glob(f"{cached.name.partition('-')[0]}-*.npy"):
        if other != cached:
            other.unlink(missing_ok=True)


def _write_header(file: IO[bytes], rows: int) -> None:
    # numpy leaves room for the number of rows, so that a header may be written again in its place.
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.dtype(np.int64).str, "fortran_order": False, "shape": (rows, 3)}
    )


class RowFiles:
    """Files whose rows are looked at; each is indexed in the background, one at a time."""

    def __init__(self, most: int = 64) -> None:
        self._most, self._lock, self._building = most, threading.Lock(), threading.Lock()
        self._files: dict[Path, RowFile] = {}

    def open(self, path: Path, opener: Opener = open_plain) -> RowFile:
        """Return the rows of a file as it is now; the index is made behind it.

        Raises DataError, and what `opener` raises.
        """
        with self._lock:
            found = self._files.pop(path, None)
            if found is None or not found.is_current():
                found = RowFile(path, opener)
                threading.Thread(target=self._build, args=(found,), name="luthier-rows", daemon=True).start()
            self._files[path] = found
            while len(self._files) > self._most:
                self._files.pop(next(iter(self._files)))
            return found

    def _build(self, file: RowFile) -> None:
        with self._building:
            try:
                file.build()
            except (LuthierError, OSError) as error:  # whoever asks for its rows is told
                logger.info("the rows of %s are not counted: %s", file.path.name, first_line(error))
