"""Heun's method: Karras et al., arXiv:2206.00364, algorithm 1 with its second-order correction. Two calls a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays import F64
from .base import LinearSampler, Move, Prediction, pairs, x0_table
from .euler import EXPLODING, exploding_sampler
from .levels import Levels, exploding_levels
from .limits import clip_limit

read_config = replace(
    EXPLODING,
    reads=EXPLODING.reads | {"clip_sample", "clip_sample_range"},
    defaults=replace(EXPLODING.defaults, beta_start=0.00085, beta_end=0.012, clip_sample=False),
)


def heun(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class: 2 n - 1 calls. Latents are x0 + sigma * noise.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    levels = twice(exploding_levels(c, num_inference_steps))
    sigmas = levels.sigmas[:-1]
    to_x0 = x0_table(c, np.ones_like(sigmas), sigmas)
    prediction = Prediction.derived(to_x0, pairs(1 / sigmas, -1 / sigmas), clip_limit(c))
    return exploding_sampler(c, levels, prediction, heun_moves(levels.sigmas))


def twice(levels: Levels) -> Levels:
    """Levels (2 n - 1) + 1 of calls: each but the first and the last is seen at the end of a step and at a start."""
    calls = np.repeat(np.arange(len(levels.timesteps)), 2)[1:]
    stops = np.append(calls, len(levels.timesteps))
    return Levels(timesteps=levels.timesteps[calls], alphas=levels.alphas[stops], sigmas=levels.sigmas[stops])


def heun_moves(sigmas: F64) -> tuple[tuple[Move, ...], ...]:
    """For a prediction that is the derivative, from the levels (calls + 1,) of `twice`."""
    moves = []
    for i in range(len(sigmas) - 1):
        first = i % 2 == 0
        dt = float(sigmas[i + 1] - sigmas[i] if first else sigmas[i] - sigmas[i - 1])
        # The trial step keeps where it began and the derivative there.
        moves.append((Move((1.0, dt), (0, 1)) if first else Move((0.0, dt / 2, 1.0, dt / 2)),))
    return tuple(moves)
