"""DDPM: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, arXiv:2006.11239, algorithm 2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..arrays import F64
from .base import LinearSampler, Move, Prediction, pairs, x0_table
from .config import COMMON, OF_DIFFUSION, ConfigReader, SchedulerConfig
from .learned import Deviation, LearnedVariance
from .limits import clip_limit, threshold_limit
from .schedule import alphas_cumprod, whole_timesteps

# The weight of the noise, from the posterior's variance and from beta. "fixed_small_log" is as diffusers has it.
VARIANCE_TYPES: dict[str | None, Callable[[F64, F64], F64]] = {
    "fixed_small": lambda variance, beta: np.sqrt(variance),
    "fixed_small_log": lambda variance, beta: np.sqrt(variance),
    "fixed_large": lambda variance, beta: np.sqrt(beta),
}
VARIANCE_TYPES[None] = VARIANCE_TYPES["fixed_small"]


def _interpolated(variance: F64, beta: F64) -> Deviation:
    # arXiv:2102.09672 eq. 15, of an answer in [-1, 1]; half the logarithm of a variance is that of a deviation
    low, high = np.log(variance) / 2, np.log(beta) / 2
    constants, slopes = ((low + high) / 2).tolist(), ((high - low) / 2).tolist()
    return lambda answer, i: np.exp(constants[i] + slopes[i] * answer)


LEARNED_VARIANCE_TYPES: dict[str | None, Callable[[F64, F64], Deviation]] = {
    "learned": lambda variance, beta: lambda answer, i: np.sqrt(answer),
    "learned_range": _interpolated,
}

read_config = ConfigReader(
    reads=COMMON
    | {"rescale_betas_zero_snr", "variance_type", "clip_sample", "clip_sample_range"}
    | {"thresholding", "dynamic_thresholding_ratio", "sample_max_value"},
    accepts={"variance_type": (*VARIANCE_TYPES, *LEARNED_VARIANCE_TYPES), "prediction_type": OF_DIFFUSION},
    lists=("timesteps",),
    defaults=SchedulerConfig(timestep_spacing="leading"),
)


def ddpm(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents have alpha^2 + sigma^2 = 1.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    power = alphas_cumprod(c)
    timesteps = whole_timesteps(c, num_inference_steps)
    powers = power[timesteps]
    next_powers = np.append(powers[1:], 1.0)
    alphas, sigmas = np.sqrt(powers), np.sqrt(1 - powers)
    # eq. 7, with alpha_t and beta_t of the whole step
    step_power = powers / next_powers
    of_latents = np.sqrt(step_power) * (1 - next_powers) / (1 - powers)
    of_x0 = np.sqrt(next_powers) * (1 - step_power) / (1 - powers)
    variance = np.maximum((1 - next_powers) / (1 - powers) * (1 - step_power), 1e-20)
    beta = 1 - step_power
    learned = LEARNED_VARIANCE_TYPES.get(c.variance_type)
    noise = np.ones_like(beta) if learned is not None else VARIANCE_TYPES[c.variance_type](variance, beta)
    with np.errstate(divide="ignore"):
        levels = np.append(sigmas / alphas, 0.0)
    rows = zip(pairs(of_latents, of_x0), timesteps.tolist(), noise.tolist(), strict=True)
    tables = LinearSampler(
        timesteps=timesteps.astype(np.float32),
        sigmas=levels,
        init_noise_sigma=1.0,
        noising=pairs(alphas, sigmas),
        prediction=Prediction(x0_table(c, alphas, sigmas), threshold_limit(c) or clip_limit(c)),
        moves=tuple((Move(row, noise=weight if t > 0 else None),) for row, t, weight in rows),
    )
    return tables if learned is None else LearnedVariance(**vars(tables), deviation=learned(variance, beta))
