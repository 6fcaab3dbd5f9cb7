"""SA-Solver: Xue et al., SA-Solver: Stochastic Adams Solver, arXiv:2309.05019, algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgediffusion.engines.errors import UsageError

from ..arrays import F64
from .base import LinearSampler, Move, pairs
from .config import SchedulerConfig
from .dpm_terms import PRESERVING, solver_prediction
from .learned import without_variance
from .levels import Levels, preserving_levels, solver_flow_levels
from .limits import threshold_limit

read_config = replace(
    PRESERVING,
    reads=PRESERVING.reads - {"solver_order", "solver_type", "use_dynamic_shifting", "time_shift_type", "mu"}
    | {"algorithm_type", "predictor_order", "corrector_order", "lambda_min_clipped", "variance_type"},
    accepts={
        "predictor_order": (1, 2, 3, 4),
        "corrector_order": (1, 2, 3, 4),
        "tau_func": (None,),
    },
    # diffusers takes the algorithms of other solvers for its own default.
    renamed={"algorithm_type": dict.fromkeys(("dpmsolver", "dpmsolver++", "deis"), "data_prediction")},
    defaults=replace(PRESERVING.defaults, algorithm_type="data_prediction", final_sigmas_type="sigma_min"),
)


def sa_solver(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents have alpha^2 + sigma^2 = 1, or are of a flow.

    It ends at the least noise of the training, or of its sigma schedule.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    levels = _levels(c, num_inference_steps)
    tables = LinearSampler(
        timesteps=levels.timesteps.astype(np.float32),
        sigmas=levels.ratios,
        init_noise_sigma=1.0,
        noising=pairs(levels.alphas[:-1], levels.sigmas[:-1]),
        prediction=solver_prediction(c, levels, of_noise=not _of_x0(c), limit=threshold_limit(c)),
        moves=tuple(_moves(c, levels, i) for i in range(num_inference_steps)),
    )
    return without_variance(c, tables)


def _of_x0(config: SchedulerConfig) -> bool:
    if config.algorithm_type not in ("data_prediction", "noise_prediction"):
        raise UsageError(
            f"scheduler config: algorithm_type {config.algorithm_type!r}; known: 'data_prediction', 'noise_prediction'"
        )
    return config.algorithm_type == "data_prediction"


def _levels(config: SchedulerConfig, num_inference_steps: int) -> Levels:
    if not config.use_flow_sigmas:
        return preserving_levels(config, num_inference_steps, stop_at_own_end=True)
    levels = solver_flow_levels(config, num_inference_steps)
    alphas, sigmas = (np.append(column[:-1], column[-2]) for column in (levels.alphas, levels.sigmas))
    return Levels(timesteps=levels.timesteps, alphas=alphas, sigmas=sigmas)


def _moves(config: SchedulerConfig, levels: Levels, i: int) -> tuple[Move, ...]:
    """By the arrays of history: none; or the latents and noise of the step before, and predictions, the last first."""
    most = max(config.predictor_order, config.corrector_order - 1)
    left = len(levels.timesteps) - i if config.lower_order_final else most + 1
    a, noise, first = _row(config, levels, i, i, min(config.predictor_order, left, 1))
    choices = [Move((a, *first), keep=(0, -1, 1)[: 2 + most], noise=noise)]
    for known in range(1, min(i, most) + 1):
        _, _, row = _row(config, levels, i, i, min(config.predictor_order, left, known + 1))
        of_last, of_last_noise, moulton = _row(
            config, levels, i - 1, i, min(config.corrector_order, left + 2, known + 1)
        )
        choices.append(
            Move(
                (a, row[0], 0.0, 0.0, *row[1:]),
                keep=(0, -1, 1, *range(4, 4 + known))[: 2 + most],
                noise=noise,
                corrector=(0.0, moulton[0], of_last, of_last_noise, *moulton[1:]),
            )
        )
    start, *later = choices
    return (start, start, start, *later)


def _row(config: SchedulerConfig, levels: Levels, s: int, newest: int, order: int) -> tuple[float, float, list[float]]:
    """From level `s` to the next: weights of the latents, the noise, and `order` predictions back from `newest`.

    Predictor (eq. 17) with newest = s, corrector (eq. 20) with newest = s + 1.
    """
    t = s + 1
    tau = 1.0 if 200 <= levels.timesteps[s] <= 800 else 0.0
    lambdas = levels.lambdas
    h = lambdas[t] - lambdas[s]
    nodes = lambdas[newest - np.arange(order)] - lambdas[t]
    alpha, sigma = levels.alphas[t], levels.sigmas[t]
    if config.algorithm_type == "noise_prediction":
        weights = -(1 + tau**2) * sigma * _integrals(nodes, h, -1.0)
        noise = tau * sigma * np.sqrt(np.expm1(2 * h))
        return float(alpha / levels.alphas[s]), float(noise), weights.tolist()
    rate = 1 + tau**2
    weights = rate * alpha * _integrals(nodes, h, rate)
    if order == 2:
        # diffusers follows the paper's code: order two is made to agree with UniPC's when tau is 0.
        slope = (h * rate + np.expm1(-rate * h)) / rate**2
        change = (h / 2 - slope / h) if newest == t else (h**2 / 2 - slope) / (nodes[0] - nodes[1])
        weights += rate * alpha * change * np.array([1.0, -1.0])
    noise = sigma * np.sqrt(-np.expm1(-2 * tau**2 * h))
    return float(np.exp(-(tau**2) * h) * sigma / levels.sigmas[s]), float(noise), weights.tolist()


def _integrals(nodes: F64, h: float, rate: float) -> F64:
    """Of exp(rate * u) times each Lagrange polynomial on `nodes`, over u from -h to 0."""
    moments = [-np.expm1(-rate * h) / rate]
    for k in range(1, len(nodes)):
        moments.append(-((-h) ** k * np.exp(-rate * h) + k * moments[-1]) / rate)
    result = np.empty(len(nodes))
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        polynomial = np.atleast_1d(np.poly(others)) / np.prod(node - others)
        result[j] = polynomial[::-1] @ moments
    return result
