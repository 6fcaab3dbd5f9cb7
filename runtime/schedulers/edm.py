"""Euler and DPM-Solver++ with EDM's preconditioning: Karras et al., arXiv:2206.00364, table 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays import F64
from .base import LinearSampler, Move, Prediction, first_order_weights, pairs, single_moves
from .config import ConfigReader, SchedulerConfig
from .dpm_multistep import multistep_moves
from .dpm_terms import DPM_NAMES
from .levels import Levels, check_steps, final_sigma
from .limits import threshold_limit
from .sigmas import RANGE_ONLY, SigmaRange, scheduled_sigmas

EULER = ConfigReader(
    reads=frozenset(
        {"num_train_timesteps", "sigma_min", "sigma_max", "sigma_data", "rho", "prediction_type", "final_sigmas_type"}
    ),
    accepts={"prediction_type": ("epsilon", "v_prediction"), "sigma_schedule": ("karras", "exponential")},
    sigmas=("model", *RANGE_ONLY),
    lists=("sigmas",),
    defaults=SchedulerConfig(sigma_min=0.002, sigma_max=80.0),
)
MULTISTEP = replace(
    EULER,
    reads=EULER.reads
    | {"solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final"}
    | {"thresholding", "dynamic_thresholding_ratio", "sample_max_value"},
    accepts={**EULER.accepts, "solver_order": (1, 2, 3), "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis")},
    renamed=DPM_NAMES,
)


def edm_euler(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents are x0 + sigma * noise.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = EULER(config)
    levels = _levels(c, config, num_inference_steps, stop_at_own_end=True)
    ones = np.ones(num_inference_steps)
    weights = first_order_weights(ones, levels.sigmas[:-1], ones, levels.sigmas[1:])
    return _sampler(c, levels, single_moves(*weights))


def edm_dpmpp_2m(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents are x0 + sigma * noise.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = MULTISTEP(config)
    levels = _levels(c, config, num_inference_steps, stop_at_own_end=False)
    return _sampler(c, levels, multistep_moves(c, levels))


def _levels(
    c: SchedulerConfig, config: Mapping[str, Any], num_inference_steps: int, *, stop_at_own_end: bool
) -> Levels:
    n = check_steps(c, num_inference_steps)
    assert c.sigma_min is not None
    assert c.sigma_max is not None
    ends = np.array([c.sigma_max, c.sigma_min])
    sigma_range = SigmaRange(own=np.ones(n), train=ends[::-1], sigma_max=c.sigma_max, sigma_min=c.sigma_min, rho=c.rho)
    if c.sigmas == "model" and config.get("sigma_schedule", "karras") == "exponential":
        sigmas: F64 = np.exp(np.linspace(np.log(c.sigma_min), np.log(c.sigma_max), n))[::-1]
    else:
        sigmas = scheduled_sigmas(replace(c, sigmas="karras") if c.sigmas == "model" else c, sigma_range)
    sigmas = np.append(sigmas, final_sigma(c, float(sigmas[-1]) if stop_at_own_end else c.sigma_min))
    return Levels(timesteps=np.log(sigmas[:-1]) / 4, alphas=np.ones(n + 1), sigmas=sigmas)


def _sampler(c: SchedulerConfig, levels: Levels, moves: tuple[tuple[Move, ...], ...]) -> LinearSampler:
    assert c.sigma_max is not None
    sigmas = levels.sigmas[:-1]
    scale = np.hypot(sigmas, c.sigma_data)
    sign = {"epsilon": 1, "v_prediction": -1}[c.prediction_type]
    return LinearSampler(
        timesteps=levels.timesteps.astype(np.float32),
        sigmas=levels.sigmas,
        init_noise_sigma=float(np.hypot(c.sigma_max, 1)),
        input_scale=tuple((1 / scale).tolist()),
        noising=pairs(np.ones_like(sigmas), sigmas),
        prediction=Prediction(
            pairs((c.sigma_data / scale) ** 2, sign * sigmas * c.sigma_data / scale), threshold_limit(c)
        ),
        moves=moves,
    )
