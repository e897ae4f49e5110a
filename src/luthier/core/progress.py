"""How far this process is, told to whoever started it, in the file that $LUTHIER_PROGRESS names; without one, nobody.

Work has parts, and those have parts again: whoever does the innermost one tells only of that.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from luthier.core.log import is_main_process, say_once

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterator

Item = TypeVar("Item")
TELL_SECONDS = 0.5
WHOLE = 10_000
"""Of work that has parts, so many are all."""
_told: dict[str, float] = {}
"""What was told last that is being done, and when."""


class Parts:
    """Work of `total` parts, one after the other."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.doing = total, 0, ""
        self._reached = 0.0

    @contextmanager
    def part(self, doing: str = "") -> Generator[None]:
        """Do one of the parts inside the block. `doing`: what it is, in words."""
        self.doing = doing
        _tell(0.0)
        try:
            yield
        finally:
            self.done = min(self.done + 1, self.total)
            self._reached = max(self._reached, self.done)

    def share(self, inner: float) -> float:
        """Return the share done, with the share `inner` of the present part; it never shrinks."""
        self._reached = max(self._reached, self.done + inner)
        return min(1.0, self._reached / self.total) if self.total else 1.0


_open: list[Parts] = []


@contextmanager
def parts(total: int) -> Generator[Parts]:
    """Count parts of the present part, or of the whole where there is none."""
    mine = Parts(total)
    _open.append(mine)
    try:
        yield mine
    finally:
        # Those inside that were left by an error may end later.
        if any(each is mine for each in _open):
            del _open[next(place for place, each in enumerate(_open) if each is mine) :]


@contextmanager
def one_part() -> Generator[None]:
    """Do one part of what is being counted; where nothing is, this says nothing."""
    if not _open:
        yield
        return
    with _open[-1].part(_open[-1].doing):
        yield


def following(items: Collection[Item]) -> Iterator[Item]:
    """Yield items: each is a part of the present part. Where nothing is counted, this says nothing."""
    if not _open:
        yield from items
        return
    with parts(len(items)) as mine:
        for item in items:
            with mine.part():
                yield item


def within(done: int, total: int) -> None:
    """Tell how much of the present part is done. Where nothing is counted, this says nothing."""
    if _open and total:
        _tell(done / total)


def progress(done: int, total: int | None, doing: str) -> None:
    """Tell how far this is, in the present part where there is one.

    `total`: None where it is not known. The file is replaced whole, at most twice a second, and at the end.
    """
    if _open:
        _tell(done / total if total else 0.0, doing)
    else:
        _write(done, total, doing, last=done == total)


def _tell(inner: float, doing: str = "") -> None:
    for each in reversed(_open):
        inner, doing = each.share(inner), doing or each.doing
    _write(int(inner * WHOLE), WHOLE, doing, last=False)


def _write(done: int, total: int | None, doing: str, *, last: bool) -> None:
    path = os.environ.get("LUTHIER_PROGRESS")
    now = time.monotonic()
    if not path or not is_main_process() or not (last or now - _told.get(doing, -1.0) >= TELL_SECONDS):
        return
    _told.clear()
    _told[doing] = now
    try:
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            json.dump({"done": done, "total": total, "doing": doing}, file)
        os.replace(f"{path}.tmp", path)
    except OSError as error:
        say_once(f"how far this is could not be written to {path}: {error.strerror}")
