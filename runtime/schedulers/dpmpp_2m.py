"""DPM-Solver++ multistep, orders 1 and 2: Lu et al., arXiv:2211.01095, algorithm 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..arrays import F64
from .base import LinearMultistep, Weights, by_step, first_order_weights, x0_table
from .config import COMMON, ConfigReader, SchedulerConfig, pick
from .schedule import karras_sigmas, spaced_timesteps, timesteps_at, train_sigmas, with_final_sigma

read_config = ConfigReader(
    reads=COMMON
    | {"use_karras_sigmas", "sigma_min", "sigma_max", "final_sigmas_type", "solver_order", "solver_type"}
    | {"lower_order_final", "euler_at_final", "lambda_min_clipped"},
    accepts={
        "solver_order": (1, 2),
        "algorithm_type": ("dpmsolver++", "deis"),  # diffusers takes the names of other solvers' settings for its own
        "thresholding": (False,),
        "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
        "use_lu_lambdas": (False, None),
        "use_flow_sigmas": (False, None),
        "use_dynamic_shifting": (False, None),
    },
)

# The weight of the first difference of x0, from h and alpha_next * (1 - exp(-h)).
SOLVER_TYPES = {
    "midpoint": lambda h, next_alphas, of_x0: of_x0 / 2,
    "heun": lambda h, next_alphas, of_x0: next_alphas - of_x0 / h,
}
SOLVER_TYPES |= dict.fromkeys(("logrho", "bh1", "bh2"), SOLVER_TYPES["midpoint"])


def dpmpp_2m(config: Mapping[str, Any], num_inference_steps: int) -> LinearMultistep:
    """The sampler for a `scheduler_config.json` of any class. Latents have alpha^2 + sigma^2 = 1.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    train = train_sigmas(c)
    timesteps, sigmas = _levels(c, train, num_inference_steps)
    levels = with_final_sigma(c, sigmas, train)
    alphas = 1 / np.hypot(levels, 1)
    return LinearMultistep(
        timesteps=timesteps.astype(np.float32),
        sigmas=levels,
        init_noise_sigma=1.0,
        to_x0=x0_table(c, alphas[:-1], (alphas * levels)[:-1]),
        weights=_weights(c, levels, alphas),
        history_length=c.solver_order - 1,
    )


def _levels(c: SchedulerConfig, train: F64, num_inference_steps: int) -> tuple[F64, F64]:
    """Timesteps and sigmas, shapes (calls,)."""
    # lambda = -log(sigma); levels below lambda_min_clipped are left out.
    stop = len(train) - int(np.sum(-np.log(train) < c.lambda_min_clipped))
    timesteps = spaced_timesteps(c, num_inference_steps, stop=stop, skip_lowest=True).round()
    if not c.use_karras_sigmas:
        return timesteps, np.interp(timesteps, np.arange(len(train)), train)
    sigmas = karras_sigmas(c, train[::-1], num_inference_steps)
    timesteps = timesteps_at(sigmas, train)
    return np.trunc(timesteps if c.beta_schedule == "squaredcos_cap_v2" else timesteps.round()), sigmas


def _weights(c: SchedulerConfig, levels: F64, alphas: F64) -> tuple[Weights, ...]:
    first = first_order_weights(alphas[:-1], (alphas * levels)[:-1], alphas[1:], (alphas * levels)[1:])
    first_rows = by_step(*first)
    if c.solver_order == 1:
        return tuple((row,) for row in first_rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.diff(-np.log(levels))
        previous_h = np.insert(h[:-1], 0, np.nan)
        difference = pick("solver_type", c.solver_type, SOLVER_TYPES)(h, alphas[1:], first[1]) * h / previous_h
    second_rows = by_step(first[0], first[1] + difference, -difference)
    n = len(first_rows)
    lower_at_final = c.euler_at_final or (c.lower_order_final and n < 15)
    # There is nothing to extrapolate at the first step, along a repeated level, or to zero noise.
    second = np.isfinite(difference) & ~(lower_at_final & (np.arange(n) == n - 1))
    return tuple((a, b) if use else (a,) for a, b, use in zip(first_rows, second_rows, second.tolist(), strict=True))
