"""Samplers of consistency models, a few steps each: LCM (arXiv:2310.04378) and TCD (arXiv:2402.19159)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediffusion.engines.errors import UsageError

from ..arrays import F64
from .base import Limit, LinearSampler, Move, Prediction, first_order_weights, pairs, x0_table
from .config import COMMON, OF_DIFFUSION, ConfigReader, SchedulerConfig, check_eta, check_strength
from .limits import clip_limit, threshold_limit
from .schedule import alphas_cumprod, given_timesteps

read_tcd_config = ConfigReader(
    reads=COMMON | {"rescale_betas_zero_snr", "original_inference_steps", "eta", "strength"},
    accepts={"prediction_type": OF_DIFFUSION},
    lists=("timesteps",),
    defaults=SchedulerConfig(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, timestep_spacing="leading"
    ),
)
read_lcm_config = replace(
    read_tcd_config,
    reads=read_tcd_config.reads - {"eta"}
    | {"timestep_scaling", "clip_sample", "clip_sample_range"}
    | {"thresholding", "dynamic_thresholding_ratio", "sample_max_value"},
)
_SIGMA_DATA = 0.5


def lcm(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """Multistep latent consistency sampling (algorithm 3), for a `scheduler_config.json` of any class.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_lcm_config(config)
    power = alphas_cumprod(c)
    timesteps = _distilled_timesteps(c, num_inference_steps)
    # Eq. 9: the boundary condition holds x0 to the latents as the timestep goes to 0.
    scaled = timesteps * c.timestep_scaling
    of_latents = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
    of_x0 = scaled / np.hypot(scaled, _SIGMA_DATA)
    next_powers = power[timesteps[1:]]
    alphas = np.append(np.sqrt(next_powers), 1.0)
    noise = [*np.sqrt(1 - next_powers).tolist(), None]
    rows = zip(pairs(alphas * of_latents, alphas * of_x0), noise, strict=True)
    moves = tuple((Move(row, noise=weight),) for row, weight in rows)
    return _consistency_sampler(c, power, timesteps, 1.0, moves, threshold_limit(c) or clip_limit(c))


def tcd(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """Strategic stochastic sampling (algorithm 4), for a `scheduler_config.json` of any class; it ends at timestep 0.

    The config's `eta`, from 0 (no noise) to 1, is 0.3 unless given; diffusers has it as an argument of `step`.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_tcd_config(config)
    check_eta(c)
    power = alphas_cumprod(c)
    timesteps = _distilled_timesteps(c, num_inference_steps)
    following = np.append(timesteps[1:], 0)
    powers, next_powers = power[timesteps], power[following]
    middle = power[np.floor((1 - c.eta) * following).astype(int)]
    rise = np.sqrt(next_powers / middle)
    noise = [*np.sqrt(1 - next_powers / middle)[:-1].tolist(), None] if c.eta > 0 else [None] * len(timesteps)
    down = first_order_weights(np.sqrt(powers), np.sqrt(1 - powers), np.sqrt(middle), np.sqrt(1 - middle))
    rows = zip(pairs(rise * down[0], rise * down[1]), noise, strict=True)
    moves = tuple((Move(row, noise=weight),) for row, weight in rows)
    return _consistency_sampler(c, power, timesteps, power[0], moves, None)


def _distilled_timesteps(config: SchedulerConfig, num_inference_steps: int) -> NDArray[np.int64]:
    """Those given, or of the timesteps that the model was distilled on as many as wanted, evenly from the highest.

    A `strength` below 1 leaves out the noisiest of them, for a start from a picture: as many steps, each a smaller one.
    """
    given = given_timesteps(config, num_inference_steps, config.num_train_timesteps)
    if given is not None:
        return given.round().astype(np.int64)
    original, count, strength = config.original_inference_steps, config.num_train_timesteps, config.strength
    check_strength(strength)
    most = int(original * strength)
    if not 1 <= num_inference_steps <= most <= count:
        share = "" if strength == 1 else f" times strength {strength:g}"
        raise UsageError(
            f"num_inference_steps {num_inference_steps}; wanted 1 to original_inference_steps{share}, {most}, "
            f"and that not above num_train_timesteps, {count}"
        )
    distilled = np.arange(most, 0, -1) * (count // original) - 1
    chosen = np.floor(np.linspace(0, most, num_inference_steps, endpoint=False)).astype(np.int64)
    timesteps: NDArray[np.int64] = distilled[chosen]
    return timesteps


def _consistency_sampler(
    config: SchedulerConfig,
    power: F64,
    timesteps: NDArray[np.int64],
    final_power: float,
    moves: tuple[tuple[Move, ...], ...],
    limit: Limit | None,
) -> LinearSampler:
    powers = power[timesteps]
    alphas, sigmas = np.sqrt(powers), np.sqrt(1 - powers)
    with np.errstate(divide="ignore"):
        levels = np.sqrt(1 / np.append(powers, final_power) - 1)
    return LinearSampler(
        timesteps=timesteps.astype(np.float32),
        sigmas=levels,
        init_noise_sigma=1.0,
        noising=pairs(alphas, sigmas),
        prediction=Prediction(x0_table(config, alphas, sigmas), limit),
        moves=moves,
    )
