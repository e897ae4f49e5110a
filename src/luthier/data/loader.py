"""Windows of packed batches for one rank, in an order that is a function of seed and position.

Nothing is drawn to skip: an epoch's order is f(seed, epoch), a place in it is an integer, and so a resumed run
reads what it would have read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from typing import TYPE_CHECKING, Protocol

import numpy as np

from luthier.core.batch import PackedBatch
from luthier.core.errors import DataError
from luthier.data.audit import AuditReport
from luthier.data.pack import pack, plan_batches

if TYPE_CHECKING:
    from luthier.core.types import Unit
    from luthier.data.prepare import Preparer
    from luthier.data.sources import Row, Source
    from luthier.data.store import UnitStore


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the data: the next window of an epoch, or the next row of a stream."""

    epoch: int = 0
    position: int = 0
    unit: int = 0
    """Units of the row at `position` that are used up already; streams only."""
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])
    """What rollouts carry from step to step beside the place in the prompts."""


@dataclass(frozen=True, slots=True)
class Window:
    """This rank's batches of one step: of one optimizer update, or of several that follow one rollout."""

    updates: Sequence[Sequence[PackedBatch]]
    next: Cursor
    """Where to go on after this window."""
    epoch: float
    """Passes over the data after this window."""
    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    """name -> (sum, count) of what was seen while the window was made."""
    peaks: Mapping[str, float] = field(default_factory=dict[str, float])
    """name -> largest value, likewise."""
    only_critic: bool = False
    """The policy stays as it is."""

    @property
    def batches(self) -> list[PackedBatch]:
        """Return the batches of all updates."""
        return [batch for update in self.updates for batch in update]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How units are grouped into batches and windows."""

    rows_per_batch: int
    fill_tokens: int | None = None
    """Fill batches up to this many tokens instead."""
    batches_per_window: int = 1
    rank: int = 0
    num_ranks: int = 1

    def share(self, batches: Sequence[Sequence[Unit]]) -> list[PackedBatch]:
        """Pack this rank's batches of a window; every rank gets the same number, empty ones at the end."""
        packed = [pack(units) for units in batches[self.rank :: self.num_ranks]]
        rounds = ceil(len(batches) / self.num_ranks)
        return packed if len(packed) == rounds else [*packed, pack(batches[0]).without_predictions()]


class Loader(Protocol):
    """What the trainer needs of data."""

    steps_per_epoch: int | None
    """None where the number of rows is not known."""

    def windows(self, start: Cursor) -> Iterator[Window]:
        """Yield windows without end, from `start` on."""
        ...


class MapLoader:
    """Windows over tokenized units."""

    def __init__(
        self,
        units: UnitStore,
        rows: np.ndarray,
        layout: Layout,
        *,
        seed: int,
        shuffle: bool = True,
        mix: str = "concat",
        probabilities: Sequence[float] = (),
    ) -> None:
        self.units, self.rows, self.layout = units, rows, layout
        self.seed, self.shuffle, self.mix, self.probabilities = seed, shuffle, mix, probabilities
        self.lengths = units.lengths()
        self.steps_per_epoch: int | None = len(self.plan(0))

    def order(self, epoch: int) -> np.ndarray:
        """Return the rows of an epoch in their order."""
        draw = np.random.default_rng([self.seed, epoch])
        if self.mix == "concat":
            return draw.permutation(self.rows) if self.shuffle else self.rows
        return self._interleave(draw)

    def _interleave(self, draw: np.random.Generator) -> np.ndarray:
        """Draw data sets by weight until the first (under) or the last (over, once) of them was read whole."""
        sources = self.units.source_index[self.rows]
        pools = [self.rows[sources == index] for index in range(int(sources.max()) + 1)]
        weights = np.asarray(self.probabilities or [1.0] * len(pools), dtype=np.float64)
        weights = np.where([len(pool) > 0 for pool in pools], weights, 0.0)
        taken: list[int] = []
        done, used = np.zeros(len(pools), dtype=int), weights <= 0
        orders = [draw.permutation(pool) if self.shuffle else pool for pool in pools]
        while True:
            source = int(draw.choice(len(pools), p=weights / weights.sum()))
            taken.append(int(orders[source][done[source]]))
            done[source] += 1
            if done[source] == len(pools[source]):
                used[source], done[source] = True, 0
                if self.mix == "interleave_under" or used.all():
                    return np.asarray(taken)
                if self.mix == "interleave_once":
                    weights[source] = 0.0
                    continue
                orders[source] = draw.permutation(pools[source]) if self.shuffle else pools[source]

    def plan(self, epoch: int) -> list[list[list[int]]]:
        """Return the windows of an epoch, each a list of batches of unit indices, for all ranks."""
        order = self.order(epoch)
        batches = plan_batches(
            [int(self.lengths[i]) for i in order], self.layout.rows_per_batch, self.layout.fill_tokens
        )
        size = self.layout.batches_per_window * self.layout.num_ranks
        named = [[int(order[i]) for i in batch] for batch in batches]
        return [named[i : i + size] for i in range(0, len(named), size)]

    def windows(self, start: Cursor) -> Iterator[Window]:
        """Yield windows without end, from `start` on."""
        for epoch in count(start.epoch):
            plan = self.plan(epoch)
            for position in range(start.position if epoch == start.epoch else 0, len(plan)):
                batches = [[self.units[i] for i in batch] for batch in plan[position]]
                last = position + 1 == len(plan)
                following = Cursor(epoch + 1, 0) if last else Cursor(epoch, position + 1)
                yield Window([self.layout.share(batches)], following, epoch + (position + 1) / len(plan))

    def batches(self) -> Iterator[PackedBatch]:
        """Yield this rank's batches of one pass in order, for evaluation; every rank yields the same number."""
        for window in self.plan(0):
            yield from self.layout.share([[self.units[i] for i in batch] for batch in window])


class StreamLoader:
    """Windows over rows that are read and tokenized while training, shuffled inside a buffer."""

    def __init__(
        self,
        start_reading: Callable[[], Iterator[tuple[Row, Source]]],
        preparer: Preparer,
        layout: Layout,
        *,
        seed: int,
        buffer_rows: int,
    ) -> None:
        self.start_reading, self.preparer, self.layout = start_reading, preparer, layout
        self.seed, self.buffer_rows = seed, buffer_rows
        self.report = AuditReport()
        self.steps_per_epoch: int | None = None

    def _drawn(self, epoch: int) -> Iterator[tuple[Row, Source]]:
        """Yield the rows of one pass; each place of the buffer that empties is filled by the next row."""
        draw, buffer = random.Random(f"{self.seed}-{epoch}"), []
        for row in self.start_reading():
            if len(buffer) < self.buffer_rows:
                buffer.append(row)
                continue
            place = draw.randrange(len(buffer))
            yield buffer[place]
            buffer[place] = row
        draw.shuffle(buffer)
        yield from buffer

    def windows(self, start: Cursor) -> Iterator[Window]:
        """Yield windows without end; rows before `start` are read again but not tokenized."""
        size = self.layout.batches_per_window * self.layout.num_ranks
        pending: list[list[Unit]] = [[]]
        for unit, here in self._units_from(start):
            self._put(unit, pending)
            if len(pending) > size:
                # The unit that opened the last batch waits for the next window, so a resumed run begins with it.
                ready, pending = pending[:size], pending[size:]
                yield Window([self.layout.share(ready)], here, float(here.epoch))

    def _units_from(self, start: Cursor) -> Iterator[tuple[Unit, Cursor]]:
        """Yield units, each with the cursor that leads back to it."""
        for epoch in count(start.epoch):
            found = False
            for position, (row, source) in enumerate(self._drawn(epoch)):
                if epoch == start.epoch and position < start.position:
                    found = True
                    continue
                for number, unit in enumerate(self._checked_units(row, source)):
                    found = True
                    if (epoch, position, number) >= (start.epoch, start.position, start.unit):
                        yield unit, Cursor(epoch, position, number)
            if not found:
                raise DataError(f"no row is left to train on ({self.report.total()})", code="data_empty")

    def _checked_units(self, row: Row, source: Source) -> list[Unit]:
        errors_before = len(self.report.errors())
        units = self.preparer.unit_of(row, source, self.report)
        if self.preparer.config.bad_rows == "fail" and len(self.report.errors()) > errors_before:
            raise DataError(f"{self.report.errors()[-1]}; mend it, or set bad_rows: skip", code="data_bad_row")
        return units

    def _put(self, unit: Unit, pending: list[list[Unit]]) -> None:
        batch, fill = pending[-1], self.layout.fill_tokens
        tokens = sum(len(s.tokens) for u in [*batch, unit] for s in u)
        full = len(batch) >= self.layout.rows_per_batch if fill is None else bool(batch) and tokens > fill
        if full:
            pending.append([unit])
        else:
            batch.append(unit)
