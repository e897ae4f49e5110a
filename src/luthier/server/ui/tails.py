"""The end of a run's events.jsonl, looked at once for all who watch; what lies before it each reads for itself.

A watcher is a byte in the file, so nothing waits in memory for a slow one. Training knows nothing of watchers.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from luthier.core.masking import mask
from luthier.runs.store import FINAL_STATES, read_status
from luthier.server.ui.sse import ALIVE, ALIVE_SECONDS, BEGIN, event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path
    from threading import Event
    from typing import BinaryIO

LOOK_SECONDS = 0.5
STATUS_SECONDS = 1.0
"""So often a process is asked whether it lives."""
PART_BYTES = 256 << 10
"""Most that is read for one watcher at a time."""
RECENT_BYTES = 1 << 20
"""Lines at the end that are kept for all."""
LONGEST_LINE_BYTES = 1 << 20
"""A longer line is left out."""
ENDED = (*FINAL_STATES, "crashed", "deleted")
_SEQ = re.compile(rb'\s*\{\s*"seq":\s*(\d{1,18})\b')


def seq_of(line: bytes) -> int | None:
    """Return the number of an event; None where the line is none."""
    found = _SEQ.match(line.lstrip(b"\0"))
    return int(found[1]) if found is not None else None


def prepared(line: bytes) -> bytes:
    """Return a line of the file as an event for a browser; nothing for a damaged one."""
    number = seq_of(line)
    if number is None or len(line) > LONGEST_LINE_BYTES:
        return b""
    text = line.strip(b"\0\r\n ")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return b""
    return b"id: %d\ndata: %s\n\n" % (number, text.replace(b"\r", b" "))


def read_part(path: Path, offset: int, most: int = PART_BYTES) -> tuple[list[tuple[int, bytes]], int]:
    """Return the whole lines behind a byte, each with the byte behind it, and where to go on."""
    if not path.exists():
        return [], offset
    found: list[tuple[int, bytes]] = []
    with path.open("rb") as file:
        file.seek(offset)
        end = offset + most
        while offset < end:
            line = _line(file)
            if line is None:
                break
            offset = file.tell()
            found.append((offset, line))
    return found, offset


def _line(file: BinaryIO) -> bytes | None:
    """Return the next whole line, of one that is too long only its beginning; None at the end."""
    line = file.readline(LONGEST_LINE_BYTES + 1)
    if line.endswith(b"\n"):
        return line
    part = line
    while part and not part.endswith(b"\n"):
        part = file.readline(LONGEST_LINE_BYTES)
    return line if part else None


def place_behind(path: Path, after: int) -> int:
    """Return the byte at which the events behind number `after` begin, by halving the file.

    The numbers of a run only grow; where the last one is below `after`, this is another file, and it is read from its
    beginning.
    """
    if after <= 0 or not path.exists():
        return 0
    with path.open("rb") as file:
        low, high = 0, file.seek(0, 2)
        while high - low > PART_BYTES:
            middle = (low + high) // 2
            start, number = _next_number(file, middle, high)
            if number is None or number > after:
                high = middle
            else:
                low = start
        file.seek(low)
        place, last = low, 0
        while (line := _line(file)) is not None:
            number = seq_of(line)
            if number is not None and number > after:
                return place
            last, place = number or last, file.tell()
    return place if last >= after else 0


def _next_number(file: BinaryIO, place: int, end: int) -> tuple[int, int | None]:
    """Return where the first event that begins behind a byte stands, and its number; None where there is none."""
    file.seek(place)
    _line(file)
    while (start := file.tell()) < end:
        line = _line(file)
        if line is None:
            break
        number = seq_of(line)
        if number is not None:
            return start, number
    return end, None


class Tail:
    """One run that is watched."""

    def __init__(self, run: Path, is_known: Callable[[], bool]) -> None:
        self.run, self.path = run, run / "events.jsonl"
        self._is_known = is_known
        self._was_there = False
        self.users = 0
        self.status: dict[str, Any] = {}
        self.version = 0
        """Grows when the status changes."""
        self.replaced = 0
        """Grows when the file becomes shorter: it is another one."""
        self._changed = asyncio.Event()
        self._recent: deque[tuple[int, int, bytes]] = deque()
        self._recent_bytes = 0
        self._end = -1
        self._status_mark: tuple[int, int] = (0, 0)
        self._status_at = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        """Tell whether nothing more will come."""
        return self.status.get("state") in ENDED

    def begin(self) -> None:
        """Look while somebody watches."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while self.users:
            if await asyncio.to_thread(self.look):
                self._changed.set()
                self._changed = asyncio.Event()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> bool:
        """Read what is new; return whether anything is."""
        return self._look_at_events() | self._look_at_status()

    def _look_at_events(self) -> bool:
        if not self.run.is_dir():
            return False
        size = self.path.stat().st_size if self.path.exists() else 0
        if self._end < 0 or size < self._end:
            self.replaced += self._end >= 0
            self._recent.clear()
            self._end, self._recent_bytes = size, 0
            return True
        if size == self._end:
            return False
        if not self._recent and self._end:
            # The first look may have fallen into the middle of a line.
            self._end = _line_begin(self.path, self._end)
        lines, end = read_part(self.path, self._end, RECENT_BYTES)
        begin = self._end
        for behind, line in lines:
            found = prepared(line)
            self._recent.append((begin, behind, found))
            self._recent_bytes += len(found)
            begin = behind
        while self._recent_bytes > RECENT_BYTES:
            self._recent_bytes -= len(self._recent.popleft()[2])
        self._end = end
        return bool(lines)

    def _look_at_status(self) -> bool:
        path, now = self.run / "status.json", time.monotonic()
        facts = path.stat() if path.exists() else None
        mark = (facts.st_mtime_ns, facts.st_ino) if facts is not None else (0, 0)
        if mark == self._status_mark and (now < self._status_at + STATUS_SECONDS or self.ended):
            return False
        self._status_mark, self._status_at = mark, now
        self._was_there |= facts is not None
        found = mask(read_status(self.run))
        if not self.run.is_dir():
            # Before it begins a run has no folder.
            found = {} if not self._was_there and self._is_known() else {"state": "deleted"}
        if found == self.status:
            return False
        self.status = found
        self.version += 1
        return True

    async def part(self, offset: int) -> tuple[bytes, int]:
        """Return the events behind a byte, up to a bound, and where to go on."""
        if self._recent and self._recent[0][0] <= offset:
            chosen = [each for each in self._recent if each[0] >= offset]
            if chosen or offset >= self._end:
                return b"".join(text for _, _, text in chosen), chosen[-1][1] if chosen else offset
        lines, end = await asyncio.to_thread(read_part, self.path, offset)
        return b"".join([prepared(line) for _, line in lines]), end

    @property
    def next(self) -> asyncio.Event:
        """Return what is set when there is something new."""
        return self._changed

    async def changed(self, since: asyncio.Event, seconds: float) -> bool:
        """Wait for something new since `next` was asked for; return False when nothing came."""
        try:
            async with asyncio.timeout(seconds):
                await since.wait()
        except TimeoutError:
            return False
        return True


def _line_begin(path: Path, place: int) -> int:
    """Return where the line begins that a byte is in."""
    with path.open("rb") as file:
        file.seek(max(0, place - LONGEST_LINE_BYTES))
        before = file.read(place - file.tell())
    return place - (len(before) - before.rfind(b"\n") - 1)


class Tails:
    """The runs that are watched."""

    def __init__(self) -> None:
        self._tails: dict[Path, Tail] = {}

    async def follow(
        self, run: Path, offset: int, closing: Event, is_known: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        """Yield what happens in a run from a byte of its events on, until it has ended and all is said.

        `is_known` tells whether a run that has no folder yet is still to come.
        """
        tail = self._tails.setdefault(run, Tail(run, is_known))
        tail.users += 1
        try:
            if tail.users == 1:
                await asyncio.to_thread(tail.look)
            tail.begin()
            yield BEGIN
            async for part in _parts(tail, offset, closing):
                yield part
        finally:
            tail.users -= 1
            if not tail.users:
                self._tails.pop(run, None)


async def _parts(tail: Tail, offset: int, closing: Event) -> AsyncIterator[bytes]:
    version, silent, replaced = 0, time.monotonic(), tail.replaced
    while not closing.is_set() and tail.replaced == replaced:
        next = tail.next
        # What is said of the end may be known before the last events are read.
        ended = tail.ended
        found, end = await tail.part(offset)
        if end > offset:
            offset, silent = end, time.monotonic()
            if found:
                yield found
            continue
        if tail.version != version:
            version, silent = tail.version, time.monotonic()
            yield event(tail.status, "status")
            continue
        if ended:
            return
        if not await tail.changed(next, 1.0) and time.monotonic() > silent + ALIVE_SECONDS:
            silent = time.monotonic()
            yield ALIVE
