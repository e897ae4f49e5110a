"""95 % intervals: Wilson for shares, the bootstrap for everything that is made of sums over rows.

Draws depend on the number of rows alone. So two models that were graded on the same rows are resampled alike, and the
difference of their scores, draw by draw, is that of a paired bootstrap. Shapes: R rows, K statistics, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

Z = 1.96
DRAWS = 2000
SEED = 20_240_517
NUMBERS_AT_A_TIME = 4_000_000
"""Of the sums of resampled rows; keeps a large benchmark within some megabytes."""
Interval = tuple[float, float]
Score = Callable[[np.ndarray], np.ndarray]
"""Sums of statistics, [B, K] -> score of each draw, [B]."""


@dataclass(frozen=True, slots=True)
class Series:
    """What a metric adds up over rows, and the score that the sums make."""

    ids: tuple[str, ...]
    """Where the rows stand; two models are compared over the rows that both have."""
    stats_RK: np.ndarray
    score: Score
    is_share: bool = False
    """Statistics are (0 or 1, 1): the score is a share of rows."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def value(self) -> float:
        """Return the score over all rows."""
        return float(self.score(self.stats_RK.sum(0, keepdims=True))[0])

    def take(self, ids: Sequence[str]) -> Series:
        """Return the series over these rows, in this order."""
        place = {name: row for row, name in enumerate(self.ids)}
        return replace(self, ids=tuple(ids), stats_RK=self.stats_RK[[place[name] for name in ids]])

    def interval(self) -> Interval | None:
        """Return the 95 % interval; None where the rows say nothing about spread: one row, or all alike."""
        if self.is_share and len(self):
            return wilson_interval(self.value, len(self))
        return _middle(self.draws()) if len(self) else None

    def draws(self) -> np.ndarray:
        """Return the score of each resampling of the rows, [B]; the same rows are drawn whatever the statistics."""
        rows, width = self.stats_RK.shape
        random, found = np.random.default_rng([SEED, rows]), []
        step = max(1, NUMBERS_AT_A_TIME // max(1, rows * width))
        for begin in range(0, DRAWS, step):
            index_BR = random.integers(0, rows, (min(step, DRAWS - begin), rows))
            found.append(self.score(self.stats_RK[index_BR].sum(1)))
        return np.concatenate(found)


def wilson_interval(share: float, count: int, z: float = Z) -> Interval:
    """Return the 95 % confidence interval of a share (Wilson 1927, as in Brown, Cai and DasGupta 2001).

    >>> [round(x, 3) for x in wilson_interval(0.9, 100)]
    [0.826, 0.945]
    """
    if count == 0:
        return 0.0, 1.0
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


def difference(one: Series, other: Series) -> tuple[float, Interval | None, int] | None:
    """Return score of `one` minus that of `other` over the rows of both, its 95 % interval, and how many rows.

    Shares go by Newcombe's method for paired ones, everything else by the paired bootstrap. None without common rows.
    """
    if one.ids != other.ids:
        there = set(other.ids)
        common = [name for name in one.ids if name in there]
        one, other = one.take(common), other.take(common)
    if not len(one):
        return None
    value = one.value - other.value
    if one.is_share and other.is_share:
        return value, newcombe_interval(one.stats_RK[:, 0] > 0, other.stats_RK[:, 0] > 0), len(one)
    return value, _middle(one.draws() - other.draws()), len(one)


def newcombe_interval(one_R: np.ndarray, other_R: np.ndarray) -> Interval:
    """Return the 95 % interval of share - share over the same rows (Newcombe 1998, Stat. Med. 17:2635, method 10)."""
    n = len(one_R)
    both, neither = int((one_R & other_R).sum()), int((~one_R & ~other_R).sum())
    only_one, only_other = int((one_R & ~other_R).sum()), int((~one_R & other_R).sum())
    p, q = (both + only_one) / n, (both + only_other) / n
    (p_low, p_high), (q_low, q_high) = wilson_interval(p, n), wilson_interval(q, n)
    margins = (both + only_one) * (only_other + neither) * (both + only_other) * (only_one + neither)
    agreement = both * neither - only_one * only_other
    corrected = max(agreement - n / 2, 0.0) if agreement > 0 else agreement
    phi = corrected / math.sqrt(margins) if margins else 0.0

    def spread(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    return p - q - spread(p - p_low, q_high - q), p - q + spread(q - q_low, p_high - p)


def _middle(values_B: np.ndarray) -> Interval | None:
    """Return the range of the middle 95 %; None where resampling changes nothing, which is no proof of precision."""
    low, high = np.percentile(values_B, [2.5, 97.5])
    return (float(low), float(high)) if np.ptp(values_B) > 1e-12 * max(1.0, abs(float(low))) else None
