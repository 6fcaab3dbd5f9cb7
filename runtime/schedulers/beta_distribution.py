"""The inverse of the symmetric beta distribution function, for the beta sigma schedule."""

from __future__ import annotations

import math

import numpy as np

from ..arrays import F64


def beta_ppf(p: F64, a: float) -> F64:
    """Where the distribution function of Beta(a, a), 0 < a <= 1, is `p` in [0, 1]. To some 1e-15; shapes (n,)."""
    half = np.minimum(p, 1 - p)
    # x^a * sum of terms[k] * x^k is the incomplete beta function; 80 terms reach 1e-18 for x <= 1 / 2.
    k = np.arange(80)
    binomials = np.cumprod(np.append(1.0, (k[:-1] + 1 - a) / (k[:-1] + 1)))
    terms = binomials / (a + k)
    target = half * math.gamma(a) ** 2 / math.gamma(2 * a)
    # Newton in w = x^a, where the function is convex and starts to the right of its zero: it falls to it monotonously.
    w = a * target
    for _ in range(20):
        x = w[:, None] ** (1 / a)
        powers = x**k
        w = np.maximum(w - (w * (powers @ terms) - target) / ((powers @ binomials) / a), 0)
    x = w ** (1 / a)
    return np.where(p <= 0.5, x, 1 - x)
