"""DPM-Solver-2 in k-diffusion's form (the midpoint method): Karras et al., arXiv:2206.00364. Two calls a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgediffusion.engines.errors import UsageError

from ..arrays import F64
from .base import LinearSampler, Move
from .config import SchedulerConfig
from .euler import EXPLODING, derivative, exploding_sampler
from .levels import Levels, exploding_levels
from .schedule import timesteps_at, train_sigmas

read_config = replace(EXPLODING, defaults=replace(EXPLODING.defaults, beta_start=0.00085, beta_end=0.012))


def dpm2(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class: 2 n - 1 calls. Latents are x0 + sigma * noise.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    if c.prediction_type == "sample":
        raise UsageError("scheduler config: prediction_type 'sample' is not supported by dpm2; take euler or heun")
    levels = exploding_levels(c, num_inference_steps)
    calls = with_midpoints(c, levels, levels.sigmas[1:-1])
    if c.sigmas == "karras":
        calls.timesteps[::2] = levels.timesteps.round()
    moves = _moves(levels.sigmas, calls.sigmas)
    return exploding_sampler(c, calls, derivative(c, calls.sigmas[:-1]), moves)


def with_midpoints(config: SchedulerConfig, levels: Levels, ends: F64) -> Levels:
    """The levels of calls: after each but the last, the midpoint in log sigma to where the step ends (n - 1,)."""
    sigmas = levels.sigmas
    n = len(levels.timesteps)
    midpoints = np.exp((np.log(ends) + np.log(sigmas[: n - 1])) / 2)
    timesteps = np.empty(2 * n - 1)
    timesteps[::2], timesteps[1::2] = levels.timesteps, timesteps_at(midpoints, train_sigmas(config))
    calls = np.empty(2 * n)
    calls[:-1:2], calls[1:-1:2], calls[-1] = sigmas[:-1], midpoints, sigmas[-1]
    return Levels(timesteps=timesteps, alphas=np.ones_like(calls), sigmas=calls)


def _moves(sigmas: F64, calls: F64) -> tuple[tuple[Move, ...], ...]:
    moves = []
    for i in range(len(calls) - 1):
        first = i % 2 == 0
        step = i // 2
        dt = calls[i + 1] - calls[i] if first else sigmas[step + 1] - sigmas[step]
        moves.append((Move((1.0, float(dt)), (0,)) if first else Move((0.0, float(dt), 1.0)),))
    return tuple(moves)
