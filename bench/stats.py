"""Statistics for machines that are shared: medians, their intervals, the spread, and when a call has warmed up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

# A spread beyond this is said to be wide: the smallest advantage that we aim for is a tenth, and what scatters by more
# than that cannot show one.
WIDE = 0.10
# Three calls within this of one another are warm; a machine with other work on it scatters by about as much for ever.
_STEADY = 1.10
CONFIDENCE = 0.95


def quantile(values: Sequence[float], fraction: float) -> float:
    """Between the values that are nearest, linearly; of one value, that one."""
    return float(np.quantile(values, fraction))


def spread(values: Sequence[float]) -> float:
    """Half of the values lie within this of one another, as a fraction of the median: interquartile range / median."""
    median = statistics.median(values)
    return (quantile(values, 0.75) - quantile(values, 0.25)) / median if median else 0.0


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the true median lies with `CONFIDENCE`, whatever the distribution: two of the ordered values.

    Of n values, the k-th from either end with 1 - 2 P(Binomial(n, 1/2) < k) >= `CONFIDENCE`. Fewer than six cannot say
    so much; then it is least and greatest, which hold it with 1 - 2^(1 - n).
    """
    ordered, n = sorted(values), len(values)
    below, k = 0.5**n, 0
    while 2 * (below + math.comb(n, k + 1) * 0.5**n) <= 1 - CONFIDENCE:
        k += 1
        below += math.comb(n, k) * 0.5**n
    return ordered[k], ordered[n - 1 - k]


def warm_up(call: Callable[[], float], *, most: int = 30, seconds: float = 30.0) -> list[float]:
    """Call until the last three times are steady, `most` times or `seconds` long at most; the times of the calls.

    The first call does not count in `seconds`: it may compile for minutes, and what comes after it is what is wanted.
    """
    times: list[float] = []
    while len(times) < most and sum(times[1:]) < seconds:
        times.append(call())
        if len(times) >= 3 and max(times[-3:]) <= _STEADY * min(times[-3:]):
            break
    return times


def exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """The p of times ~ sizes^p that fits best in logarithms: 1 where twice the work takes twice the time."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
