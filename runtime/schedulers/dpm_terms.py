"""The exponential integrators that the DPM solvers share: Lu et al., arXiv:2206.00927 and arXiv:2211.01095."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edgediffusion.engines.errors import UsageError

from ..arrays import F64
from .base import Limit, Pairs, Prediction, pairs, unchecked_x0_table, x0_table
from .config import COMMON, SIGMA_FLAGS, ConfigReader, SchedulerConfig, pick
from .learned import LEARNED
from .levels import Levels
from .sigmas import SIGMA_SCHEDULES

PRESERVING = ConfigReader(
    reads=COMMON
    | SIGMA_FLAGS.keys() - {"use_lu_lambdas"}
    | {"sigma_min", "sigma_max", "use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type", "mu"}
    | {"solver_order", "solver_type", "lower_order_final"}
    | {"thresholding", "dynamic_thresholding_ratio", "sample_max_value"},
    accepts={"solver_order": (1, 2, 3)},
    sigmas=tuple(SIGMA_SCHEDULES),
    lists=("sigmas", "timesteps"),
)
# diffusers takes the names of other solvers' settings for its own.
DPM_NAMES = {
    "algorithm_type": {"deis": "dpmsolver++"},
    "solver_type": dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint"),
}
DPM = replace(
    PRESERVING,
    reads=PRESERVING.reads | {"algorithm_type", "final_sigmas_type", "lambda_min_clipped", "variance_type"},
    accepts={
        **PRESERVING.accepts,
        "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", *LEARNED),
    },
    renamed=DPM_NAMES,
)


@dataclass(frozen=True)
class Terms:
    """One step from level s to level t: what the latents, the prediction, its differences and fresh noise weigh.

    `first["midpoint"]` and `first["heun"]` are two ways to weigh the first difference.
    """

    latents: float
    constant: float
    first: dict[str, float]
    second: float
    noise: float | None = None


def _data(alpha_s: float, sigma_s: float, alpha: float, sigma: float, h: float) -> Terms:
    # arXiv:2211.01095 eq. 9: of x0
    e = np.expm1(-h)
    return Terms(
        latents=sigma / sigma_s,
        constant=alpha - sigma / sigma_s * alpha_s,
        first={"midpoint": -alpha * e / 2, "heun": alpha * (e / h + 1)},
        second=-alpha * ((e + h) / h**2 - 0.5),
    )


def _noise(alpha_s: float, sigma_s: float, alpha: float, sigma: float, h: float) -> Terms:
    # arXiv:2206.00927 eq. 3.7: of the noise
    e = np.expm1(h)
    return Terms(
        latents=alpha / alpha_s,
        constant=-sigma * e,
        first={"midpoint": -sigma * e / 2, "heun": -sigma * (e / h - 1)},
        second=-sigma * ((e - h) / h**2 - 0.5),
    )


def _stochastic_data(alpha_s: float, sigma_s: float, alpha: float, sigma: float, h: float) -> Terms:
    # arXiv:2211.01095 eq. 18, SDE-DPM-Solver++
    e = -np.expm1(-2 * h)
    return Terms(
        latents=sigma / sigma_s * np.exp(-h),
        constant=alpha * e,
        first={"midpoint": alpha * e / 2, "heun": alpha * (e / (-2 * h) + 1)},
        second=alpha * ((e - 2 * h) / (2 * h) ** 2 - 0.5),
        noise=float(sigma * np.sqrt(e)),
    )


def _stochastic_noise(alpha_s: float, sigma_s: float, alpha: float, sigma: float, h: float) -> Terms:
    # arXiv:2211.01095 eq. 17, SDE-DPM-Solver
    e = np.expm1(h)
    return Terms(
        latents=alpha / alpha_s,
        constant=-2 * sigma * e,
        first={"midpoint": -sigma * e, "heun": -2 * sigma * (e / h - 1)},
        second=np.nan,
        noise=float(sigma * np.sqrt(np.expm1(2 * h))),
    )


ALGORITHMS: dict[str, Callable[[float, float, float, float, float], Terms]] = {
    "dpmsolver++": _data,
    "dpmsolver": _noise,
    "sde-dpmsolver++": _stochastic_data,
    "sde-dpmsolver": _stochastic_noise,
}
OF_NOISE = frozenset({"dpmsolver", "sde-dpmsolver"})


def terms(config: SchedulerConfig, levels: Levels, s: int, t: int) -> Terms:
    """Of the step from level `s` to level `t`; not finite where `t` is free of noise, but for the constant."""
    alpha_s, sigma_s = levels.alphas[s], levels.sigmas[s]
    alpha, sigma = levels.alphas[t], levels.sigmas[t]
    with np.errstate(divide="ignore", invalid="ignore"):
        h = levels.lambdas[t] - levels.lambdas[s]
        return pick("algorithm_type", config.algorithm_type, ALGORITHMS)(alpha_s, sigma_s, alpha, sigma, h)


# Weights of the latents and of the network's output in the noise, where it need not be told from x0.
NOISE_TABLES: dict[str, Callable[[F64, F64], tuple[F64, F64]]] = {
    "epsilon": lambda alphas, sigmas: (np.zeros_like(alphas), np.ones_like(alphas)),
    "v_prediction": lambda alphas, sigmas: (sigmas, alphas),
}


def solver_prediction(config: SchedulerConfig, levels: Levels, *, of_noise: bool, limit: Limit | None) -> Prediction:
    """x0, or the noise."""
    alphas, sigmas = levels.alphas[:-1], levels.sigmas[:-1]
    if of_noise and limit is None and config.prediction_type in NOISE_TABLES:
        table = pairs(*NOISE_TABLES[config.prediction_type](alphas, sigmas))
        return Prediction(table, to_x0=unchecked_x0_table(config, alphas, sigmas))
    to_x0 = x0_table(config, alphas, sigmas)
    return Prediction.derived(to_x0, noise_table(alphas, sigmas), limit) if of_noise else Prediction(to_x0, limit)


def noise_table(alphas: F64, sigmas: F64) -> Pairs:
    """Weights of the latents and of x0 in the noise."""
    return pairs(1 / sigmas, -alphas / sigmas)


def check_final(config: SchedulerConfig) -> None:
    """diffusers, and the mathematics, have a step to zero noise only for a solver of x0.

    Raises:
        UsageError: the config asks for another.
    """
    if config.algorithm_type in OF_NOISE and config.final_sigmas_type == "zero":
        raise UsageError(
            f"scheduler config: algorithm_type {config.algorithm_type!r} cannot end at final_sigmas_type 'zero'; "
            "set it to 'sigma_min'"
        )
