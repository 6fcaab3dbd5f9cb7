"""Euler's method on the probability flow: Karras et al., arXiv:2206.00364, algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays import F64
from .base import LinearSampler, Move, Prediction, first_order_weights, pairs, single_moves, x0_table
from .config import COMMON, OF_DIFFUSION, SIGMA_FLAGS, ConfigReader, SchedulerConfig
from .levels import Levels, exploding_levels
from .sigmas import SIGMA_SCHEDULES

EXPLODING = ConfigReader(
    reads=COMMON | SIGMA_FLAGS.keys() - {"use_lu_lambdas"} | {"sigma_min", "sigma_max"},
    accepts={"prediction_type": OF_DIFFUSION},
    sigmas=tuple(SIGMA_SCHEDULES),
    lists=("sigmas", "timesteps"),
)
read_config = replace(
    EXPLODING,
    reads=EXPLODING.reads | {"rescale_betas_zero_snr", "final_sigmas_type", "timestep_type", "interpolation_type"},
    accepts={
        **EXPLODING.accepts,
        "interpolation_type": ("linear", "log_linear"),
        "timestep_type": ("discrete", "continuous"),
    },
)


def euler(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents are x0 + sigma * noise.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    levels = exploding_levels(c, num_inference_steps)
    sigmas, ones = levels.sigmas, np.ones(num_inference_steps)
    if c.timestep_type == "continuous" and c.prediction_type == "v_prediction":
        levels = replace(levels, timesteps=np.log(sigmas[:-1]) / 4)
    moves = single_moves(*first_order_weights(ones, sigmas[:-1], ones, sigmas[1:]))
    return exploding_sampler(c, levels, Prediction(x0_table(c, ones, sigmas[:-1])), moves)


def exploding_sampler(
    config: SchedulerConfig, levels: Levels, prediction: Prediction, moves: tuple[tuple[Move, ...], ...]
) -> LinearSampler:
    """A sampler of latents x0 + sigma * noise: the network is shown them scaled to alpha^2 + sigma^2 = 1."""
    sigmas = levels.sigmas[:-1]
    return LinearSampler(
        timesteps=levels.timesteps.astype(np.float32),
        sigmas=levels.sigmas,
        init_noise_sigma=float(np.hypot(sigmas[0], 1) if config.timestep_spacing == "leading" else sigmas[0]),
        input_scale=tuple((1 / np.hypot(sigmas, 1)).tolist()),
        noising=pairs(np.ones_like(sigmas), sigmas),
        prediction=prediction,
        moves=moves,
    )


def derivative(config: SchedulerConfig, sigmas: F64) -> Prediction:
    """d latents / d sigma = (latents - x0) / sigma at each level, shape (calls,)."""
    of_x0 = 1 / sigmas
    return Prediction.derived(x0_table(config, np.ones_like(sigmas), sigmas), pairs(of_x0, -of_x0))
