"""Linear multistep (Adams-Bashforth on uneven steps), order 4: Hairer et al., Solving ODEs I, section III.5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.polynomial.legendre import leggauss

from ..arrays import F64
from .base import LinearSampler, Move
from .euler import EXPLODING, derivative, exploding_sampler
from .levels import exploding_levels

ORDER = 4


def lms(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents are x0 + sigma * noise.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = EXPLODING(config)
    if c.sigmas == "karras":
        c = replace(c, sigma_min=None, sigma_max=None)  # as in diffusers, of this sampler and dpmpp_sde
    levels = exploding_levels(c, num_inference_steps)
    moves = tuple(_moves(levels.sigmas, i) for i in range(num_inference_steps))
    return exploding_sampler(c, levels, derivative(c, levels.sigmas[:-1]), moves)


def _moves(sigmas: F64, i: int) -> tuple[Move, ...]:
    # As in diffusers, a run that starts in the middle takes the weights of the full order from its first step on.
    weights = _integrals(sigmas, i, min(i + 1, ORDER))
    moves = []
    for known in range(1, ORDER + 1):
        keep = (1, *range(2, known + 1))[: ORDER - 1]
        moves.append(Move((1.0, *weights[:known]), keep))
    return tuple(moves)


def _integrals(sigmas: F64, i: int, order: int) -> list[float]:
    """Of the Lagrange polynomials through the last levels, over the step."""
    nodes, node_weights = leggauss(ORDER)
    a, b = sigmas[i], sigmas[i + 1]
    at = (a + b) / 2 + (b - a) / 2 * nodes
    known = sigmas[i - np.arange(order)]
    integrals = []
    for k in range(order):
        others = np.delete(known, k)
        values = np.prod((at[:, None] - others) / (known[k] - others), axis=1)
        integrals.append(float(values @ node_weights * (b - a) / 2))
    return integrals
