"""One number of an evaluation with its 95 % interval, and what is needed to compare it row by row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from luthier.evaluation.intervals import Interval, Score, Series, difference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A number, named kind/metric."""

    name: str
    value: float
    interval: Interval | None
    """95 % confidence; None where too few rows say nothing about it."""
    rows: int
    better: Better = "higher"
    is_detail: bool = False
    """One of many parts of another number; shown when asked for."""
    series: Series | None = None
    """What a paired comparison needs."""

    def __str__(self) -> str:
        low, high = self.interval or (math.nan, math.nan)
        return f"{self.name} {self.value:.3f} (95 %: {low:.3f} to {high:.3f}, {self.rows} rows)"

    def as_dict(self) -> dict[str, Any]:
        """Return what is written to results.json."""
        facts = {"value": self.value, "interval": self.interval, "rows": self.rows, "better": self.better}
        return facts | ({"detail": True} if self.is_detail else {})


@dataclass(frozen=True, slots=True)
class Difference:
    """A model's number minus that of the one that it is compared with, over the rows of both."""

    value: float
    interval: Interval | None
    rows: int

    def as_dict(self) -> dict[str, Any]:
        """Return what is written to results.json."""
        return {"value": self.value, "interval": self.interval, "rows": self.rows}


def measured(name: str, series: Series, *, better: Better = "higher", is_detail: bool = False) -> Measure:
    """Return the number that a series makes."""
    return Measure(
        name=name,
        value=series.value,
        interval=series.interval(),
        rows=len(series),
        better=better,
        is_detail=is_detail,
        series=series,
    )


def share(ids: Sequence[str], holds: Sequence[bool]) -> Series:
    """Return the share of rows for which something holds."""
    return Series(tuple(ids), _two([float(each) for each in holds], np.ones(len(ids))), _ratio, is_share=True)


def mean(ids: Sequence[str], values: Sequence[float]) -> Series:
    """Return the mean of one number a row."""
    return Series(tuple(ids), _two(values, np.ones(len(ids))), _ratio)


def ratio(
    ids: Sequence[str],
    above: Sequence[float] | np.ndarray,
    below: Sequence[float] | np.ndarray,
    then: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Series:
    """Return one sum over another one, and what `then` makes of it."""
    score: Score = _ratio if then is None else lambda sums_BK: then(_ratio(sums_BK))
    return Series(tuple(ids), _two(above, below), score)


def compare(one: Measure, other: Measure) -> Difference | None:
    """Return the paired difference of two models in one number; None where they have no row in common."""
    if one.series is None or other.series is None:
        return None
    found = difference(one.series, other.series)
    return None if found is None else Difference(*found)


def unique(ids: Sequence[str]) -> list[str]:
    """Return the names with a count behind those that were there before.

    >>> unique(["a:1", "a:2", "a:1"])
    ['a:1', 'a:2', 'a:1#2']
    """
    seen: dict[str, int] = {}
    found: list[str] = []
    for name in ids:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found


def _two(above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray) -> np.ndarray:
    return np.stack([np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)], 1)


def _ratio(sums_BK: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums_BK[:, 0] / sums_BK[:, 1]
