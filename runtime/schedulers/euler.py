"""Euler's method on the probability flow: Karras et al., arXiv:2206.00364, algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .base import LinearMultistep, by_step, first_order_weights, x0_table
from .config import COMMON, ConfigReader
from .schedule import karras_sigmas, spaced_timesteps, timesteps_at, train_sigmas, with_final_sigma

read_config = ConfigReader(
    reads=COMMON | {"use_karras_sigmas", "sigma_min", "sigma_max", "final_sigmas_type"},
    accepts={
        "interpolation_type": ("linear",),
        "timestep_type": ("discrete",),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
    },
)


def euler(config: Mapping[str, Any], num_inference_steps: int) -> LinearMultistep:
    """The sampler for a `scheduler_config.json` of any class. Latents are x0 + sigma * noise.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    train = train_sigmas(c)
    timesteps = spaced_timesteps(c, num_inference_steps)
    sigmas = np.interp(timesteps, np.arange(len(train)), train)
    if c.use_karras_sigmas:
        sigmas = karras_sigmas(c, sigmas, num_inference_steps)
        timesteps = timesteps_at(sigmas, train)
    levels = with_final_sigma(c, sigmas, train)
    ones = np.ones(num_inference_steps)
    return LinearMultistep(
        timesteps=timesteps.astype(np.float32),
        sigmas=levels,
        init_noise_sigma=float(np.hypot(sigmas[0], 1) if c.timestep_spacing == "leading" else sigmas[0]),
        input_scale=tuple((1 / np.hypot(sigmas, 1)).tolist()),
        to_x0=x0_table(c, ones, sigmas),
        weights=tuple((row,) for row in by_step(*first_order_weights(ones, sigmas, ones, levels[1:]))),
    )
