"""The statistics, on numbers whose answers are known."""

from __future__ import annotations

import math

import pytest

from edgediffusion.bench.stats import exponent, median_interval, quantile, spread, warm_up


@pytest.mark.parametrize(
    ("n", "rank"),
    # Conover, Practical Nonparametric Statistics, table A3: the two ranks that hold the median with 95 % or more.
    [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (11, 2), (12, 3), (15, 4), (20, 6), (25, 8)],
)
def test_the_interval_of_a_median_is_two_of_the_ordered_values(n: int, rank: int) -> None:
    values = [float((7 * k) % n) for k in range(n)] if n % 7 else [float(k) for k in reversed(range(n))]
    assert median_interval(values) == (rank - 1, n - rank)
    outside = 2 * sum(math.comb(n, k) for k in range(rank)) / 2**n
    assert n < 6 or outside <= 0.05


def test_the_spread_is_that_of_the_middle_half() -> None:
    assert spread([8.0, 9.0, 10.0, 11.0, 1000.0]) == pytest.approx(0.2)
    assert spread([3.0]) == 0
    assert spread([0.0, 0.0]) == 0


def test_quantiles_lie_between_values() -> None:
    assert quantile([1.0, 2.0], 0.5) == 1.5
    assert quantile([4.0], 0.99) == 4.0


def test_warm_when_three_calls_agree() -> None:
    times = iter([9.0, 3.0, 1.09, 1.0, 1.05, 7.0])
    assert warm_up(lambda: next(times)) == [9.0, 3.0, 1.09, 1.0, 1.05]


def test_warming_up_ends_though_calls_never_agree() -> None:
    times = iter([1.0, 2.0] * 50)
    assert len(warm_up(lambda: next(times), most=7)) == 7
    assert warm_up(lambda: next(times), seconds=2.5) == [2.0, 1.0, 2.0]


def test_a_first_call_that_compiles_is_not_the_last_one_of_the_warm_up() -> None:
    times = iter([80.0, 0.3, 0.01, 0.01, 0.01, 7.0])
    assert warm_up(lambda: next(times)) == [80.0, 0.3, 0.01, 0.01, 0.01]


def test_the_exponent_of_a_power() -> None:
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)
