"""Where each row of a file begins: any page of a large file is read without what lies before it.

Rows are those of `sources.read_rows`, in the same order: row 7 here is the row that training counts as its eighth.
An index is made once for each version of a file and kept in the cache folder.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import mmap
import os
import re
import threading
import time
from array import array
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.errors import DataError
from luthier.core.log import first_line, logger, printable
from luthier.core.paths import cache_folder, replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Entry = tuple[int, int, int]
"""First byte of a row, the byte behind it, and its line, from 1 on."""

LARGEST_PARSED_BYTES = 16_000_000
PART_BYTES = 1 << 20
LONGEST_TABLE_LINE = 32 << 20
"""A longer line of a csv file, and all behind it, is one broken row."""
SHOWN_BYTES = 100_000
"""Of a row that is larger, so much is shown, as text."""
LARGEST_FIELD = 2**31 - 1
_TAIL_BYTES = 64
_MARK = b"\xef\xbb\xbf"
_BLANK = re.compile(rb"[ \t\r\n]*+")
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\Z)', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]\s]++")
_LINE = re.compile(rb"[^\r\n]*+(?:\r\n|\r|\n|\Z)")


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as it stands in a file."""

    line: int
    """From 1 on; of tables, the number of the row."""
    value: Any
    """What was read; text where that was not possible."""
    broken: str = ""
    """Why it is no row."""


def _lines(path: Path, *, only_text: bool) -> Iterator[Entry]:
    """Yield lines that are not blank; with `only_text` blanks are those of Unicode, as txt files are read.

    A line of any length takes the memory of a part.
    """
    end, number = 0, 0
    with path.open("rb") as file:
        while part := file.readline(PART_BYTES):
            begin, end, number = end, end + len(part), number + 1
            filled = bool(part.strip()) and not (only_text and _is_blank_text(part))
            tail = part
            while not part.endswith(b"\n") and (part := file.readline(PART_BYTES)):
                end, filled, tail = (
                    end + len(part),
                    filled or bool(part.strip()),
                    (tail + part[-_TAIL_BYTES:])[-_TAIL_BYTES:],
                )
            if filled:
                yield begin, end - len(tail) + len(tail.rstrip(b"\r\n")), number


def _is_blank_text(raw: bytes) -> bool:
    try:
        return not raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return False


def _elements(path: Path) -> Iterator[Entry]:
    """Yield the elements of a JSON list; lines where the file holds objects one below the other."""
    if os.path.getsize(path) == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = _skip_blank(data, len(_MARK) if data[:3] == _MARK else 0)
        if data[at : at + 1] != b"[":
            yield from _lines(path, only_text=False) if data[at : at + 1] == b"{" else [(0, len(data), 1)]
            return
        line, counted, at = 1, 0, _skip_blank(data, at + 1)
        while at < len(data) and data[at : at + 1] != b"]":
            end = max(_end_of_element(data, at), at + 1)
            line, counted = line + data[counted:at].count(b"\n"), at
            yield at, end, line
            at = _skip_blank(data, end)
            if data[at : at + 1] == b",":
                at = _skip_blank(data, at + 1)


def _skip_blank(data: mmap.mmap, at: int) -> int:
    found = _BLANK.match(data, at)
    return found.end() if found else at


def _end_of_element(data: mmap.mmap, at: int) -> int:
    first = data[at : at + 1]
    if first not in (b"{", b"["):
        found = (_STRING if first == b'"' else _SCALAR).match(data, at)
        return found.end() if found else at + 1
    depth = 0
    for token in _STRUCTURE.finditer(data, at):
        kind = data[token.start() : token.start() + 1]
        depth += (kind in (b"{", b"[")) - (kind in (b"}", b"]"))
        if depth == 0:
            return token.end()
    return len(data)


def _records(path: Path) -> Iterator[Entry]:
    """Yield the records of a csv file behind its header. Places are those that an audit tells."""
    csv.field_size_limit(LARGEST_FIELD)
    ends = array("q", [0])
    with path.open("rb") as file:
        reader = csv.reader(_decoded_lines(file, ends), strict=True)
        begin, line, is_header = 0, 1, True
        try:
            for record in reader:
                end = ends[reader.line_num]
                if record and not is_header:
                    yield begin, end, line
                if record:
                    begin, line, is_header = end, reader.line_num + 1, False
        except (csv.Error, UnicodeDecodeError):
            yield begin, max(os.path.getsize(path), begin + 1), line


def _decoded_lines(file: Any, ends: array[int]) -> Iterator[str]:
    """Yield lines as text mode would split them, and note the byte behind each."""
    while raw := file.readline(LONGEST_TABLE_LINE):
        if len(raw) == LONGEST_TABLE_LINE:
            raise csv.Error(f"a line is longer than {LONGEST_TABLE_LINE} bytes")
        for part in _LINE.findall(raw) if b"\r" in raw[:-2] else (raw,):
            if part:
                ends.append(ends[-1] + len(part))
                yield part.decode("utf-8-sig" if len(ends) == 2 else "utf-8")


_SCANNERS: dict[str, Callable[[Path], Iterator[Entry]]] = {
    ".jsonl": lambda path: _lines(path, only_text=False),
    ".txt": lambda path: _lines(path, only_text=True),
    ".json": _elements,
    ".csv": _records,
}
TABLES = (".parquet", ".arrow")
KINDS = (*_SCANNERS, *TABLES)


class RowFile:
    """Rows of one file, by place.

    Until the index is there, pages at the beginning are read by scanning from the first byte.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix not in KINDS:
            raise DataError(f"{path.name}: rows are read from {', '.join(KINDS)} files", code="data_kind_of_file")
        if not path.is_file():
            raise DataError(f"{path} is not there, or no plain file", code="data_missing")
        self.path, self.version = path, _version(path)
        self._ready = threading.Event()
        self._entries: np.ndarray | None = None
        self._table: Any = None
        self._header: list[str] | None = None
        self.failure = ""

    @property
    def total(self) -> int | None:
        """Return how many rows there are; None while they are counted."""
        if self.path.suffix in TABLES:
            return self.table().num_rows
        return None if self._entries is None else len(self._entries)

    def is_current(self) -> bool:
        """Tell whether the file is what it was."""
        try:
            return _version(self.path) == self.version
        except OSError:
            return False

    def build(self) -> None:
        """Read the index from the cache, or make it and keep it there."""
        if self.path.suffix in TABLES or self._entries is not None:
            self._ready.set()
            return
        cached = _cache_file(self.path, self.version)
        try:
            if not cached.is_file():
                _make(self.path, cached)
            self._entries = np.load(cached, mmap_mode="r")
        except (OSError, ValueError) as error:
            # A full disk must not hide the rows; the index then lives as long as this object.
            logger.warning("the row index of %s is not kept: %s", self.path.name, first_line(error))
            self._entries = np.array(list(_SCANNERS[self.path.suffix](self.path)), dtype=np.int64).reshape(-1, 3)
        finally:
            self._ready.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the index; tell whether it is there."""
        return self._ready.wait(seconds)

    def entries(self, start: int, count: int) -> list[Entry]:
        """Return where rows `start`, `start` + 1, ... stand, at most `count`."""
        if self._entries is not None:
            return [(int(a), int(b), int(c)) for a, b, c in self._entries[start : start + count]]
        return list(islice(_SCANNERS[self.path.suffix](self.path), start, start + count))

    def rows(self, start: int, count: int) -> list[StoredRow]:
        """Return rows by their places."""
        if self.path.suffix in TABLES:
            return [StoredRow(start + i + 1, value) for i, value in enumerate(self.table().rows(start, count))]
        with self.path.open("rb") as file:
            return [self._read(file, entry) for entry in self.entries(start, count)]

    def raw(self, file: Any, entry: Entry) -> bytes:
        """Return the bytes of a row of an open file."""
        file.seek(entry[0])
        return file.read(entry[1] - entry[0])

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
        until, found = time.monotonic() + seconds, list[int]()
        for place, holds in self._matches(text, start):
            if holds:
                found.append(place)
            if len(found) >= count or (place % 64 == 0 and time.monotonic() > until):
                return found, place + 1
        return found, None

    def _matches(self, text: str, start: int) -> Iterator[tuple[int, bool]]:
        if self.path.suffix in TABLES:
            for place in range(start, self.table().num_rows):
                (row,) = self.table().rows(place, 1)
                yield place, text.lower() in str(row).lower()
            return
        needles = {text.encode("utf-8", "surrogatepass").lower(), json.dumps(text)[1:-1].encode().lower()}
        with self.path.open("rb") as file:
            place = start
            while entries := self.entries(place, 1024):
                for entry in entries:
                    begin, end, line = entry
                    raw = self.raw(file, (begin, min(end, begin + LARGEST_PARSED_BYTES), line)).lower()
                    yield place, any(needle in raw for needle in needles)
                    place += 1

    def header(self) -> list[str]:
        """Return the columns of a csv file."""
        if self._header is None:
            with self.path.open("r", encoding="utf-8-sig", newline="", errors="replace") as file:
                self._header = next((record for record in csv.reader(file) if record), [])
        return self._header

    def table(self) -> Any:
        """Return a reader of a parquet or arrow file. Raises DataError where it is damaged."""
        if self._table is None:
            from luthier.data.row_tables import open_table

            self._table = open_table(self.path)
        return self._table

    def _read(self, file: Any, entry: Entry) -> StoredRow:
        begin, end, line = entry
        if end - begin > LARGEST_PARSED_BYTES:
            start = self.raw(file, (begin, begin + SHOWN_BYTES, line)).decode("utf-8", "replace")
            return StoredRow(line, start, f"the row has {end - begin} bytes; its beginning is shown as text")
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


def _version(path: Path) -> str:
    facts = path.stat()
    return f"{facts.st_dev}-{facts.st_ino}-{facts.st_size}-{facts.st_mtime_ns}"


def _cache_file(path: Path, version: str) -> Path:
    name, of_version = (hashlib.sha256(text.encode()).hexdigest()[:20] for text in (str(path.resolve()), version))
    return cache_folder("rows", f"{name}-{of_version}.npy")


def _make(path: Path, cached: Path) -> None:
    found = array("q")
    for entry in _SCANNERS[path.suffix](path):
        found.extend(entry)
    with replacing(cached) as temporary, temporary.open("wb") as file:
        np.save(file, np.frombuffer(found, dtype=np.int64).reshape(-1, 3) if found else np.zeros((0, 3), np.int64))
    for other in cached.parent.glob(f"{cached.name.partition('-')[0]}-*.npy"):
        if other != cached:
            other.unlink(missing_ok=True)


class RowFiles:
    """Files whose rows are looked at; each is indexed in the background, one at a time."""

    def __init__(self, most: int = 64) -> None:
        self._most, self._lock, self._building = most, threading.Lock(), threading.Lock()
        self._files: dict[Path, RowFile] = {}

    def open(self, path: Path) -> RowFile:
        """Return the rows of a file as it is now; the index is made behind it. Raises DataError."""
        with self._lock:
            found = self._files.pop(path, None)
            if found is None or not found.is_current():
                found = RowFile(path)
                threading.Thread(target=self._build, args=(found,), name="luthier-rows", daemon=True).start()
            self._files[path] = found
            while len(self._files) > self._most:
                self._files.pop(next(iter(self._files)))
            return found

    def _build(self, file: RowFile) -> None:
        with self._building:
            file.build()
