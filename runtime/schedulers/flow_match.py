"""Euler's and Heun's method on a rectified flow: Lipman et al., arXiv:2210.02747; Esser et al., arXiv:2403.03206."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .base import LinearSampler, Move, Prediction, pairs
from .config import SIGMA_FLAGS, ConfigReader, SchedulerConfig
from .heun import heun_moves, twice
from .levels import Levels, check_steps, dynamically_shifted, flow_levels, given_or, shifted, stretched
from .schedule import given_timesteps
from .sigmas import RANGE_ONLY, SigmaRange, scheduled_sigmas

HEUN = ConfigReader(reads=frozenset({"num_train_timesteps", "shift"}), accepts={}, lists=("sigmas",))
EULER = replace(
    HEUN,
    reads=HEUN.reads
    | SIGMA_FLAGS.keys() - {"use_lu_lambdas"}
    | {"use_dynamic_shifting", "time_shift_type", "mu", "shift_terminal", "invert_sigmas", "stochastic_sampling"}
    | {"sigma_min", "sigma_max"},
    sigmas=("model", *RANGE_ONLY),
    lists=("sigmas", "timesteps"),
)


def flow_euler(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents are (1 - sigma) * x0 + sigma * noise.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = EULER(config)
    levels = _levels(c, num_inference_steps)
    sigmas = levels.sigmas
    if c.stochastic_sampling:
        # x0 = latents - sigma * velocity, then fresh noise
        moves = tuple(
            (Move((1 - s, -(1 - s) * t), noise=s),) for t, s in zip(sigmas.tolist(), sigmas[1:].tolist(), strict=False)
        )
    else:
        moves = tuple((Move((1.0, dt)),) for dt in np.diff(sigmas).tolist())
    return _sampler(levels, moves)


def flow_heun(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class: 2 n - 1 calls. Latents as for `flow_euler`.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = HEUN(config)
    levels = twice(_levels(c, num_inference_steps))
    return _sampler(levels, heun_moves(levels.sigmas))


def _levels(c: SchedulerConfig, num_inference_steps: int) -> Levels:
    n = check_steps(c, num_inference_steps)
    shift = 1.0 if c.use_dynamic_shifting else c.shift
    # As in diffusers, where the lowest is shifted twice.
    even = np.linspace(1.0, shifted(np.array(1 / c.num_train_timesteps), shift).item(), n)
    timesteps = given_timesteps(c, n, c.num_train_timesteps + 1)
    sigmas = given_or(c, even) if timesteps is None else timesteps / c.num_train_timesteps
    sigmas = dynamically_shifted(c, sigmas) if c.use_dynamic_shifting else shifted(sigmas, shift)
    sigmas = stretched(sigmas, c.shift_terminal)
    if isinstance(c.sigmas, str) and c.sigmas != "model":
        sigmas = scheduled_sigmas(c, SigmaRange.between(c, sigmas, sigmas, sigmas[::-1]))
    end = 0.0
    if c.invert_sigmas:
        sigmas, end = 1 - sigmas, 1.0
    levels = flow_levels(c, sigmas, end)
    # As in diffusers, timesteps from a list are not shifted.
    return replace(levels, timesteps=levels.sigmas[:-1] * c.num_train_timesteps if timesteps is None else timesteps)


def _sampler(levels: Levels, moves: tuple[tuple[Move, ...], ...]) -> LinearSampler:
    alphas, sigmas = levels.alphas[:-1], levels.sigmas[:-1]
    return LinearSampler(
        timesteps=levels.timesteps.astype(np.float32),
        sigmas=levels.ratios,
        init_noise_sigma=1.0,
        noising=pairs(alphas, sigmas),
        prediction=Prediction(
            pairs(np.zeros_like(sigmas), np.ones_like(sigmas)), to_x0=pairs(np.ones_like(sigmas), -sigmas)
        ),
        moves=moves,
    )
