"""Where each row of a text file begins and ends, found in one pass that holds little of the file at a time.

A row of more than LARGEST_ROW_BYTES is told as one that is too large, and never read whole; training takes longer ones.
Of lists and tables it is the last one, with all that lies behind it. Lines go on behind it, unless the pass is `brief`.
"""

from __future__ import annotations

import csv
import os
import re
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

Entry = tuple[int, int, int]
"""First byte of a row, the byte behind it, and its line, from 1 on."""

LARGEST_ROW_BYTES = 16_000_000
PART_BYTES = 1 << 20
_LARGEST_FIELD = 2**31 - 1
_TAIL_BYTES = 64
_MARK = b"\xef\xbb\xbf"
_BLANK = re.compile(rb"[ \t\r\n]*+")
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.|\\\Z)*+(?:"|\Z)|[\[\]{}]', re.DOTALL)
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]\s]++")
_LINE = re.compile(rb"[^\r\n]*+(?:\r\n|\r|\n|\Z)")


class Scanner(Protocol):
    """Yields the rows of a file that is open for reading bytes."""

    def __call__(self, file: IO[bytes], *, brief: bool) -> Iterator[Entry]:
        """Yield them in order."""
        ...


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


# ---- lines


def _json_lines(file: IO[bytes], *, brief: bool) -> Iterator[Entry]:
    return _lines(file, only_text=False, brief=brief)


def _text_lines(file: IO[bytes], *, brief: bool) -> Iterator[Entry]:
    return _lines(file, only_text=True, brief=brief)


def _lines(file: IO[bytes], *, only_text: bool, brief: bool) -> Iterator[Entry]:
    """Yield lines that are not blank; with `only_text` blanks are those of Unicode, as txt files are read.

    A `brief` pass ends with a line that is too large, without looking for its end.
    """
    end, number = 0, 0
    while part := file.readline(PART_BYTES):
        begin, end, number = end, end + len(part), number + 1
        filled = bool(part.strip()) and not (only_text and _is_blank_text(part))
        tail = part
        while not part.endswith(b"\n") and (part := file.readline(PART_BYTES)):
            end, filled = end + len(part), filled or bool(part.strip())
            tail = (tail + part[-_TAIL_BYTES:])[-_TAIL_BYTES:]
            if brief and end - begin > LARGEST_ROW_BYTES:
                yield begin, end, number
                return
        if filled:
            yield begin, end - len(tail) + len(tail.rstrip(b"\r\n")), number


def _is_blank_text(raw: bytes) -> bool:
    try:
        return not raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return False


# ---- lists


class _Ahead:
    """A part of a file, from `at` on, that grows until what stands there is whole."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.data = file, file.read(len(_MARK))
        self.at = len(_MARK) if self.data == _MARK else 0
        self._before, self._line, self._counted = 0, 1, 0

    @property
    def next(self) -> bytes:
        """Return the byte here; none at the end of the file."""
        return self.data[self.at : self.at + 1]

    @property
    def place(self) -> int:
        """Return where in the file this is."""
        return self._before + self.at

    def line(self) -> int:
        """Return the line that this is on, from 1 on."""
        self._line += self.data.count(b"\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def more(self) -> bool:
        """Read on, and forget what lies behind; tell whether there was more."""
        self.line()
        kept = self.data[self.at :]
        part = self._file.read(max(PART_BYTES, len(kept)))
        self._before += self.at
        self.data, self.at, self._counted = kept + part, 0, 0
        return bool(part)

    def skip_blank(self) -> None:
        """Go to the next byte that is not blank."""
        while (found := _BLANK.match(self.data, self.at)) is not None:
            self.at = found.end()
            if self.at < len(self.data) or not self.more():
                return

    def pass_element(self) -> bool:
        """Go behind the element of a list that begins here, or to the end of the file; False where it is too large."""
        while (end := _end_of_element(self.data, self.at)) is None:
            if len(self.data) - self.at > LARGEST_ROW_BYTES:
                return False
            if not self.more():
                end = len(self.data)
                break
        self.at = max(end, self.at + 1)
        return True


def _elements(file: IO[bytes], *, brief: bool) -> Iterator[Entry]:
    """Yield the elements of a JSON list; lines where the file holds objects one below the other."""
    ahead = _Ahead(file)
    ahead.skip_blank()
    if ahead.next != b"[":
        if ahead.next == b"{":
            file.seek(0)
            yield from _lines(file, only_text=False, brief=brief)
        elif _size(file):
            yield 0, _size(file), 1
        return
    ahead.at += 1
    ahead.skip_blank()
    while ahead.next not in (b"", b"]"):
        begin, line = ahead.place, ahead.line()
        if not ahead.pass_element():
            yield begin, _size(file), line
            return
        yield begin, ahead.place, line
        ahead.skip_blank()
        if ahead.next == b",":
            ahead.at += 1
            ahead.skip_blank()


def _end_of_element(data: bytes, at: int) -> int | None:
    """Return where the element ends that begins at `at`; None where that is not in `data`."""
    first = data[at : at + 1]
    if first == b'"':
        found = _STRING.match(data, at)
        return None if found is None else found.end()
    if first not in (b"{", b"["):
        found = _SCALAR.match(data, at)
        end = at + 1 if found is None else found.end()
        return end if end < len(data) else None
    depth = 0
    for token in _STRUCTURE.finditer(data, at):
        kind = data[token.start() : token.start() + 1]
        depth += (kind in (b"{", b"[")) - (kind in (b"}", b"]"))
        if depth == 0:
            return token.end()
    return None


# ---- tables of text


class TableLines:
    """The lines of a csv file, as text mode would split them.

    Raises csv.Error where those of one record are too large, UnicodeDecodeError for what is not UTF-8.
    """

    def __init__(self, file: IO[bytes], errors: str = "strict") -> None:
        csv.field_size_limit(_LARGEST_FIELD)
        self._file, self._errors = file, errors
        self.begin, self.end = 0, 0
        """First byte of the record that is being read; the byte behind the last line that was given."""

    def __iter__(self) -> Iterator[str]:
        while raw := self._file.readline(LARGEST_ROW_BYTES + 1):
            for part in self._parts(raw):
                encoding = "utf-8" if self.end else "utf-8-sig"
                self.end += len(part)
                if self.end - self.begin > LARGEST_ROW_BYTES:
                    raise csv.Error(f"a record has more than {LARGEST_ROW_BYTES} bytes")
                yield part.decode(encoding, self._errors)

    @staticmethod
    def _parts(raw: bytes) -> Iterator[bytes]:
        if b"\r" in raw[:-2]:
            yield from (found[0] for found in _LINE.finditer(raw) if found[0])
        else:
            yield raw


def _records(file: IO[bytes], *, brief: bool) -> Iterator[Entry]:
    """Yield the records of a csv file behind its header. Places are those that an audit tells."""
    del brief
    lines = TableLines(file)
    reader = csv.reader(lines, strict=True)
    line, is_header = 1, True
    try:
        for record in reader:
            if record and not is_header:
                yield lines.begin, lines.end, line
            if record:
                lines.begin, line, is_header = lines.end, reader.line_num + 1, False
    except (csv.Error, UnicodeDecodeError):
        yield lines.begin, max(_size(file), lines.begin + 1), line


SCANNERS: dict[str, Scanner] = {".jsonl": _json_lines, ".txt": _text_lines, ".json": _elements, ".csv": _records}
"""Suffix -> how its rows are found."""
