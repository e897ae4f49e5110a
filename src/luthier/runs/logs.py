"""Parts of a log, by bytes: forwards, backwards, or its end."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MOST_LINES = 5000
MOST_BYTES = 1 << 20
"""Most that is read at a time."""
MOST_CHARACTERS = 4000
"""Of one line; the rest is left out."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Part:
    """Whole lines, and the bytes between which they stand."""

    lines: list[str] = field(default_factory=list[str])
    begin: int = 0
    end: int = 0


def read_part(path: Path, *, after: int | None = None, before: int | None = None, limit: int = 500) -> Part:
    """Return up to `limit` lines behind or before a byte, or the last ones; none where there is no log."""
    if not path.is_file():
        return Part()
    limit = max(1, min(limit, MOST_LINES))
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if after is not None and after <= size:
            file.seek(after)
            return _forwards(file.read(MOST_BYTES), after, limit)
        end = size if before is None else min(before, size)
        begin = max(0, end - MOST_BYTES)
        file.seek(begin)
        return _backwards(file.read(end - begin), begin, limit, last=before is None)


def tail(path: Path, limit: int) -> list[str]:
    """Return the last lines."""
    return read_part(path, limit=limit).lines


def _forwards(data: bytes, begin: int, limit: int) -> Part:
    whole = data[: data.rfind(b"\n") + 1]
    if not whole and len(data) == MOST_BYTES:
        whole = data
    lines = whole.split(b"\n")[:-1] if whole.endswith(b"\n") else [whole] if whole else []
    kept = lines[:limit]
    end = begin + (sum(len(line) + 1 for line in kept) if len(kept) < len(lines) else len(whole))
    return Part([_text(line) for line in kept], begin, end)


def _backwards(data: bytes, begin: int, limit: int, *, last: bool) -> Part:
    if begin:
        # The first line began before what was read.
        cut = data.find(b"\n") + 1
        data, begin = data[cut:], begin + cut
    if last:
        data = data[: data.rfind(b"\n") + 1]
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    kept = lines[-limit:]
    first = begin + sum(len(line) + 1 for line in lines[: len(lines) - len(kept)])
    return Part([_text(line) for line in kept], first, begin + len(data))


def _text(line: bytes) -> str:
    """Return a line as text, of a progress bar its last state, without colours and other control characters."""
    text = line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]
    return _CONTROLS.sub("", _ESCAPES.sub("", text))[:MOST_CHARACTERS]
