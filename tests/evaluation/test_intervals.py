"""Intervals cover what they promise, and differences are paired."""

import numpy as np
import pytest

from luthier.evaluation.intervals import difference, newcombe_interval, wilson_interval
from luthier.evaluation.measure import mean, ratio, share

IDS = [str(i) for i in range(60)]


def test_newcombe_is_that_of_the_paper() -> None:
    """Newcombe 1998, table II, method 10: (e, f, g, h) = (36, 12, 2, 0) of 50 gives 0.0569 to 0.3404."""
    one = np.array([True] * 36 + [True] * 12 + [False] * 2)
    other = np.array([True] * 36 + [False] * 12 + [True] * 2)
    assert newcombe_interval(one, other) == pytest.approx((0.0569, 0.3404), abs=1e-3)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    draws = np.random.default_rng(0)
    hard = draws.normal(size=60) * 5
    one, other = mean(IDS, hard + 1), mean(IDS, hard + draws.normal(size=60) * 0.1)
    found = difference(one, other)
    assert found is not None
    value, (low, high), rows = found  # type: ignore[misc]
    assert rows == 60
    assert low < value < high
    assert 0.9 < value < 1.1
    assert high - low < 0.1
    width = one.interval()
    assert width is not None
    assert width[1] - width[0] > 2


def test_coverage_of_the_bootstrap() -> None:
    draws, inside = np.random.default_rng(1), 0
    for _ in range(60):
        low, high = mean(IDS, draws.normal(size=60)).interval()  # type: ignore[misc]
        inside += low < 0 < high
    assert 50 <= inside <= 60


def test_only_common_rows_are_compared() -> None:
    one, other = share(["a", "b", "c"], [True, True, False]), share(["b", "c", "d"], [False, False, True])
    value, _, rows = difference(one, other)  # type: ignore[misc]
    assert (value, rows) == (0.5, 2)
    assert difference(share(["a"], [True]), share(["b"], [True])) is None


def test_a_ratio_weighs_rows_by_their_tokens() -> None:
    assert ratio(["a", "b"], [2.0, 30.0], [1.0, 10.0]).value == pytest.approx(32 / 11)
    assert ratio(["a", "b"], [2.0, 30.0], [1.0, 10.0], np.exp).value == pytest.approx(np.exp(32 / 11))


def test_nothing_is_claimed_of_one_row() -> None:
    assert mean(["a"], [1.0]).interval() is None
    assert wilson_interval(0.0, 0) == (0.0, 1.0)
    low, high = share(["a"], [True]).interval()  # type: ignore[misc]
    assert 0.2 < low < 0.21
    assert high == 1.0
