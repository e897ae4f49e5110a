"""Curves of a run from events.jsonl: read on from where the last look ended, and thinned so that no peak is lost.

A metric has columns of its own: one that comes every hundred steps keeps all its points beside one that comes at each.
Where a resumed run went back to an earlier step, the later record stands. Buckets are so many
steps wide, a power of two, and their edges never move: old points stay where they are while new ones come.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Literal

import numpy as np

from luthier.runs.event_blocks import Block, read_blocks
from luthier.runs.series import Series

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Numbers = npt.NDArray[np.float64]
    Places = npt.NDArray[np.intp]

Axis = Literal["step", "tokens", "time"]
NO_CURVES = frozenset({"seq", "step", "epoch", "mono", "tokens", "nonfinite"})
"""Numbers of an event that say where it stands."""
COARSE_STEPS = 64
"""Width of the buckets whose extremes are known beforehand."""
COARSE_FROM = 50_000
"""Points from which on they are."""
_HEAD_BYTES = 256
MOST_RUNS = 8
MOST_BYTES = 600_000_000
"""What runs take that are kept; the ones looked at longest ago are forgotten, and read again when asked for."""


class Column:
    """Numbers that grow at the end and may be cut there."""

    def __init__(self) -> None:
        self._room: Numbers = np.empty(16, np.float64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> Numbers:
        """Return the numbers; they must not be kept while the column grows."""
        return self._room[: self._size]

    def extend(self, more: Numbers) -> None:
        """Put numbers behind the last one."""
        size = self._size + len(more)
        if size > len(self._room):
            room = np.empty(max(size, len(self._room) * 3 // 2), np.float64)
            room[: self._size] = self.values
            self._room = room
        self._room[self._size : size] = more
        self._size = size

    def cut(self, size: int) -> None:
        """Forget all but the first `size` numbers."""
        self._size = min(size, self._size)

    @property
    def bytes(self) -> int:
        """Return what the column takes."""
        return self._room.nbytes


class Rows:
    """Columns side by side, in rising order of steps."""

    def __init__(self, *names: str) -> None:
        self.columns = {name: Column() for name in ("step", *names)}

    def __len__(self) -> int:
        return len(self.columns["step"])

    def add(self, rows: dict[str, Numbers]) -> None:
        """Put points behind the last one; a step that is there already, or lies before one, takes the later place."""
        steps = rows["step"]
        if not len(steps):
            return
        if len(steps) > 1 and not np.all(steps[1:] > steps[:-1]):
            ahead = np.append(np.minimum.accumulate(steps[::-1])[::-1][1:], np.inf)
            keep = steps < ahead
            rows = {name: each[keep] for name, each in rows.items()}
        self.cut(float(rows["step"][0]))
        for name, column in self.columns.items():
            column.extend(rows[name])

    def cut(self, step: float) -> None:
        """Forget the points from `step` on."""
        own = self.columns["step"].values
        if len(own) and own[-1] >= step:
            size = int(np.searchsorted(own, step))
            for column in self.columns.values():
                column.cut(size)

    @property
    def bytes(self) -> int:
        """Return what the columns take."""
        return sum(column.bytes for column in self.columns.values())


class Metric(Rows):
    """One metric: steps, and what stands at each. The extremes of buckets that are complete are known beforehand."""

    def __init__(self) -> None:
        super().__init__("value")
        self._coarse = _nowhere()
        self._done = 0

    def cut(self, step: float) -> None:
        """Forget the points from `step` on."""
        super().cut(step)
        if self._done > len(self):
            self._coarse, self._done = _nowhere(), 0

    def prepare(self) -> None:
        """Find the extremes of buckets that are complete."""
        steps = self.columns["step"].values
        if len(steps) - self._done < COARSE_FROM:
            return
        end = int(np.searchsorted(steps, float(steps[-1]) // COARSE_STEPS * COARSE_STEPS))
        found = extremes(steps[self._done : end], self.columns["value"].values[self._done : end], COARSE_STEPS)
        self._coarse, self._done = np.concatenate([self._coarse, found + self._done]), end

    def thinned(self, begin: float | None, end: float | None, points: int) -> tuple[Places, int]:
        """Return the places of at most about `points` points between two steps, and how many there are in all."""
        steps, values = self.columns["step"].values, self.columns["value"].values
        first = 0 if begin is None else int(np.searchsorted(steps, begin, "left"))
        last = len(steps) if end is None else int(np.searchsorted(steps, end, "right"))
        count = max(0, last - first)
        if count <= points:
            return np.arange(first, first + count), count
        width = bucket_width(float(steps[last - 1] - steps[first]) + 1, points)
        places = np.arange(first, last)
        if width > COARSE_STEPS and self._done > first:
            # Whole buckets inside the range are known; its two ends are looked at.
            low = int(np.searchsorted(steps, math.ceil(float(steps[first]) / COARSE_STEPS) * COARSE_STEPS))
            high = min(self._done, last)
            inside = self._coarse[np.searchsorted(self._coarse, low) : np.searchsorted(self._coarse, high)]
            places = np.concatenate([np.arange(first, low), inside, np.arange(max(low, high), last)])
        return places[extremes(steps[places], values[places], width)], count


def _nowhere() -> Places:
    return np.empty(0, np.intp)


def bucket_width(steps: float, points: int) -> int:
    """Return the least power of two that makes at most half as many buckets of `steps` steps as there are points.

    >>> bucket_width(1_000_000, 2000), bucket_width(10, 2000)
    (1024, 1)
    """
    buckets = max(1, points // 2)
    return 1 << max(0, math.ceil(math.log2(max(1.0, steps / buckets))))


def extremes(steps: Numbers, values: Numbers, width: int) -> Places:
    """Return the places of the least and the greatest value of each bucket of `width` steps, and of one gap in it.

    The first and the last point stay, too. Steps rise.
    """
    if not len(steps):
        return _nowhere()
    bucket = np.floor_divide(steps, width)
    starts = np.flatnonzero(np.concatenate([[True], bucket[1:] != bucket[:-1]]))
    sizes = np.diff(np.append(starts, len(steps)))
    gaps = np.isnan(values)
    found = [np.array([0, len(steps) - 1])]
    for reduce in (np.fmin, np.fmax):
        extreme: Numbers = np.repeat(reduce.reduceat(values, starts), sizes)
        found.append(_first_in_each(np.flatnonzero(values == extreme), bucket))
    if gaps.any():
        found.append(_first_in_each(np.flatnonzero(gaps), bucket))
    return np.unique(np.concatenate(found))


def _first_in_each(places: Places, bucket: Numbers) -> Places:
    """Return the first place of each bucket; places rise."""
    of = bucket[places]
    return places[np.concatenate([np.ones(min(1, len(of)), bool), of[1:] != of[:-1]])]


class RunCurves:
    """The metrics of one run. Safe to use from several metrics."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.metrics: dict[str, Metric] = {}
        self._axes = Rows("tokens", "time")
        self.last_seq = 0
        self.damaged = 0
        """Lines that could not be read."""
        self.resumed: list[int] = []
        """Steps behind which the run went on."""
        self._offset, self._head = 0, b""
        self._tokens = self._since = self._mono = 0.0
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Read what was written since the last look. Raises OSError when that cannot be."""
        path = self.run / "events.jsonl"
        with self._lock:
            head = _head(path)
            if not head.startswith(self._head) or (head and path.stat().st_size < self._offset):
                self._forget()
            if not head:
                return
            self._head = head
            for block in read_blocks(path, self._offset):
                self._take(block)
                self._offset = block.end
            for each in self.metrics.values():
                each.prepare()

    def _forget(self) -> None:
        self.metrics, self._axes, self.resumed = {}, Rows("tokens", "time"), []
        self._offset = self.last_seq = self.damaged = 0
        self._head = b""
        self._tokens = self._since = self._mono = 0.0

    def _take(self, block: Block) -> None:
        self.damaged += block.damaged
        self.last_seq = max(self.last_seq, block.last_seq)
        for after in block.begins:
            self._cut(after)
        if len(block.step):
            self._add(block)

    def _cut(self, after: int) -> None:
        """Begin again behind a step."""
        if after:
            self.resumed.append(after)
        for each in (self._axes, *self.metrics.values()):
            each.cut(after + 1)
        self._tokens = float(self._axes.columns["tokens"].values[-1]) if len(self._axes) else 0.0
        # Seconds count from the start of a process.
        self._since, self._mono = self._since + self._mono, 0.0

    def _add(self, block: Block) -> None:
        axes = {"step": block.step, "tokens": _filled(block.tokens, self._tokens), "time": self._elapsed(block.mono)}
        self._tokens = float(axes["tokens"][-1])
        # Of several events of one step the first one says when it was.
        last = self._axes.columns["step"].values[-1:]
        fresh = np.diff(block.step, prepend=last if len(last) else math.nan) != 0
        self._axes.add({name: each[fresh] for name, each in axes.items()})
        for name, values in block.metrics.items():
            if name not in NO_CURVES:
                there = block.there[name]
                rows = {"step": block.step, "value": values}
                chosen = rows if there is None else {key: each[there] for key, each in rows.items()}
                self.metrics.setdefault(name, Metric()).add(chosen)

    def _elapsed(self, mono: Numbers) -> Numbers:
        """Return seconds of training: the clock of a process starts at 0, and goes on where the last one ended."""
        known = _filled(mono, self._mono)
        before = np.concatenate([[self._mono], known[:-1]])
        lost = np.where(known < before, before, 0.0).cumsum()
        self._mono = float(known[-1])
        found = known + lost + self._since
        self._since += float(lost[-1])
        return found

    def curve(
        self, name: str, axis: Axis = "step", begin: float | None = None, end: float | None = None, points: int = 2000
    ) -> tuple[list[float], list[float], int]:
        """Return x, y (NaN: no number there) and how many points there are between `begin` and `end`.

        All empty for a metric that is not there.
        """
        with self._lock:
            metric = self.metrics.get(name)
            if metric is None:
                return [], [], 0
            places, count = metric.thinned(self._step_at(axis, begin), self._step_at(axis, end), points)
            x, y = metric.columns["step"].values[places], metric.columns["value"].values[places]
            if axis != "step":
                x = self._axes.columns[axis].values[np.searchsorted(self._axes.columns["step"].values, x)]
        return x.tolist(), y.tolist(), count

    def series(self, most: int) -> dict[str, Series]:
        """Return the metrics for rules that judge them, of each at most `most` points at equal distances."""
        found: dict[str, Series] = {}
        with self._lock:
            for name, metric in self.metrics.items():
                steps, values = metric.columns["step"].values, metric.columns["value"].values
                places = np.flatnonzero(np.isfinite(values))
                if len(places) > most:
                    places = places[np.linspace(0, len(places) - 1, most).astype(np.intp)]
                found[name] = Series(steps[places].astype(int).tolist(), values[places].tolist())
        return {name: each for name, each in found.items() if len(each)}

    def _step_at(self, axis: Axis, place: float | None) -> float | None:
        """Return the first step that is not before a place of an axis."""
        if place is None or axis == "step":
            return place
        row = int(np.searchsorted(self._axes.columns[axis].values, place))
        steps = self._axes.columns["step"].values
        return float(steps[row]) if row < len(steps) else math.inf

    def place(self, step: int) -> dict[str, float]:
        """Return where a step stands on each axis: at the last event that is not behind it. Empty before the first."""
        with self._lock:
            columns = {name: column.values for name, column in self._axes.columns.items() if name != "step"}
            row = int(np.searchsorted(self._axes.columns["step"].values, step, "right")) - 1
            return {name: float(values[row]) for name, values in columns.items()} if row >= 0 else {}

    def ends(self, name: str) -> tuple[float | None, float | None, float | None]:
        """Return the last, the least and the greatest value of a metric; None where it is no number."""
        with self._lock:
            metric = self.metrics.get(name)
            values = metric.columns["value"].values if metric is not None else np.empty(0)
            finite = values[np.isfinite(values)]
        if not len(finite):
            return None, None, None
        last = float(values[-1])
        return last if math.isfinite(last) else None, float(finite.min()), float(finite.max())

    @property
    def names(self) -> list[str]:
        """Return the names of metrics, in the order in which they came."""
        with self._lock:
            return [name for name, each in self.metrics.items() if len(each)]

    @property
    def bytes(self) -> int:
        """Return what the run takes."""
        return sum(each.bytes for each in [self._axes, *self.metrics.values()])


def _head(path: Path) -> bytes:
    """Return the first bytes of a file, which tell it from another one of the same name."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


def _filled(values: Numbers, before: float) -> Numbers:
    """Return the numbers with the one before in place of each that is missing."""
    missing = np.isnan(values)
    if not missing.any():
        return values
    places = np.where(missing, -1, np.arange(len(values)))
    last = np.maximum.accumulate(places)
    return np.where(last < 0, before, values[np.maximum(last, 0)])


class CurveCache:
    """Runs that somebody looked at lately. Safe to use from several metrics."""

    def __init__(self, most_runs: int = MOST_RUNS, most_bytes: int = MOST_BYTES) -> None:
        self._most_runs, self._most_bytes = most_runs, most_bytes
        self._runs: OrderedDict[Path, RunCurves] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, run: Path) -> RunCurves:
        """Return the curves of a run as they are now."""
        with self._lock:
            found = self._runs.get(run) or RunCurves(run)
            self._runs[run] = found
            self._runs.move_to_end(run)
        found.refresh()
        with self._lock:
            while len(self._runs) > 1 and (len(self._runs) > self._most_runs or self._bytes() > self._most_bytes):
                self._runs.popitem(last=False)
        return found

    def _bytes(self) -> int:
        return sum(each.bytes for each in self._runs.values())
