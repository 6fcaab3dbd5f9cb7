"""Ancestral sampling: a step to less noise than is wanted next, and fresh noise up to it.

Song et al., arXiv:2011.13456, appendix F, in the form of k-diffusion: github.com/crowsonkb/k-diffusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays import F64
from .base import LinearSampler, Move, Prediction, first_order_weights, pairs, x0_table
from .config import SIGMA_FLAGS
from .dpm2 import read_config as read_dpm2_config
from .dpm2 import with_midpoints
from .euler import EXPLODING, derivative, exploding_sampler
from .levels import exploding_levels

read_config = replace(EXPLODING, reads=EXPLODING.reads - SIGMA_FLAGS.keys() | {"rescale_betas_zero_snr"})


def euler_a(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """Euler ancestral, for a `scheduler_config.json` of any class. Latents are x0 + sigma * noise.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    levels = exploding_levels(c, num_inference_steps)
    sigmas, ones = levels.sigmas[:-1], np.ones(num_inference_steps)
    down, up = down_and_up(sigmas, levels.sigmas[1:])
    rows = pairs(*first_order_weights(ones, sigmas, ones, down))
    moves = tuple((Move(row, noise=noise),) for row, noise in zip(rows, up.tolist(), strict=True))
    return exploding_sampler(c, levels, Prediction(x0_table(c, ones, sigmas)), moves)


def dpm2_a(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """DPM-Solver-2 ancestral (the midpoint method): 2 n - 1 calls. Latents are x0 + sigma * noise.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_dpm2_config(config)
    levels = exploding_levels(c, num_inference_steps)
    down, up = down_and_up(levels.sigmas[:-1], levels.sigmas[1:])
    calls = with_midpoints(c, levels, down[:-1])
    if c.sigmas == "karras":
        calls.timesteps[::2] = levels.timesteps.round()
    sigmas = calls.sigmas.tolist()
    moves: list[tuple[Move, ...]] = []
    for step in range(num_inference_steps - 1):
        sigma, middle = sigmas[2 * step : 2 * step + 2]
        moves.append((Move((1.0, middle - sigma), keep=(0,)),))
        moves.append((Move((0.0, float(down[step]) - sigma, 1.0), noise=float(up[step])),))
    moves.append((Move((1.0, -sigmas[-2])),))
    return exploding_sampler(c, calls, derivative(c, calls.sigmas[:-1]), tuple(moves))


def down_and_up(sigmas: F64, next_sigmas: F64) -> tuple[F64, F64]:
    """The level to step down to, and the noise to add, so that both together make `next_sigmas`."""
    up = next_sigmas * np.sqrt(np.maximum(1 - (next_sigmas / sigmas) ** 2, 0))
    return np.sqrt(next_sigmas**2 - up**2), up
