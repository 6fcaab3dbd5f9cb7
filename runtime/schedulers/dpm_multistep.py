"""DPM-Solver and DPM-Solver++ multistep, orders 1 to 3: Lu et al., arXiv:2211.01095, algorithm 2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgediffusion.engines.errors import UsageError

from ..arrays import F64
from .base import LinearSampler, Move, pairs
from .config import SchedulerConfig, pick
from .dpm_terms import DPM, OF_NOISE, check_final, solver_prediction, terms
from .learned import without_variance
from .levels import Levels, preserving_levels, solver_flow_levels
from .limits import threshold_limit

read_config = replace(DPM, reads=DPM.reads | {"rescale_betas_zero_snr", "use_lu_lambdas", "euler_at_final"})


def dpmpp_2m(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents have alpha^2 + sigma^2 = 1, or are of a flow.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    check_final(c)
    if c.use_flow_sigmas:
        levels = solver_flow_levels(c, num_inference_steps)
    else:
        levels = preserving_levels(c, num_inference_steps, whole=c.beta_schedule != "squaredcos_cap_v2")
    return preserving_sampler(c, levels, multistep_moves(c, levels))


def preserving_sampler(config: SchedulerConfig, levels: Levels, moves: tuple[tuple[Move, ...], ...]) -> LinearSampler:
    """A sampler whose starting noise is standard normal."""
    prediction = solver_prediction(
        config, levels, of_noise=config.algorithm_type in OF_NOISE, limit=threshold_limit(config)
    )
    tables = LinearSampler(
        timesteps=levels.timesteps.astype(np.float32),
        sigmas=levels.ratios,
        init_noise_sigma=1.0,
        noising=pairs(levels.alphas[:-1], levels.sigmas[:-1]),
        prediction=prediction,
        moves=moves,
    )
    return without_variance(config, tables)


def multistep_moves(config: SchedulerConfig, levels: Levels) -> tuple[tuple[Move, ...], ...]:
    """For each call the moves that need no earlier prediction, one, and two, as far as the order goes.

    Raises:
        UsageError: the solver_type or algorithm_type is unknown, or has no third order.
    """
    n = len(levels.timesteps)
    few = config.lower_order_final and n < 15
    moves = []
    for i in range(n):
        highest = min(config.solver_order, i + 1)
        if i == n - 1 and (config.euler_at_final or few or config.final_sigmas_type == "zero"):
            highest = 1
        elif i == n - 2 and few:
            highest = min(highest, 2)
        rows = [_row(config, levels, i, order) for order in range(1, highest + 1)]
        # There is nothing to extrapolate along a repeated level.
        rows = rows[:1] + [row for row in rows[1:] if np.isfinite(row.weights).all()]
        moves.append(tuple(replace(rows[min(k, len(rows) - 1)], keep=kept) for k, kept in enumerate(_kept(config))))
    return tuple(moves)


def _kept(config: SchedulerConfig) -> list[tuple[int, ...]]:
    """The columns to keep when 0, 1, ... predictions are at hand: one less than the order, the new one first."""
    return [(1, *range(2, known + 2))[: config.solver_order - 1] for known in range(config.solver_order)]


def _row(config: SchedulerConfig, levels: Levels, i: int, order: int) -> Move:
    """Step `i` with a difference less than `order` (algorithm 2 and appendix B)."""
    t = terms(config, levels, i, i + 1)
    weights = np.array([t.constant, 0.0, 0.0])
    with np.errstate(divide="ignore", invalid="ignore"):
        h = np.diff(levels.lambdas)
        if order == 2:
            weights += pick("solver_type", config.solver_type, t.first) * _difference(0) * (h[i] / h[i - 1])
        elif order == 3:
            r0, r1 = h[i - 1] / h[i], h[i - 2] / h[i]
            recent, older = _difference(0) / r0, _difference(1) / r1
            weights += t.first["heun"] * (recent + r0 / (r0 + r1) * (recent - older))
            weights += _third(config, t.second) * (recent - older) / (r0 + r1)
    return Move((float(t.latents), *weights[:order].tolist()), noise=t.noise)


def _difference(k: int) -> F64:
    weights: F64 = np.zeros(3)
    weights[k], weights[k + 1] = 1, -1
    return weights


def _third(config: SchedulerConfig, second: float) -> float:
    if config.algorithm_type == "sde-dpmsolver":
        raise UsageError("scheduler config: algorithm_type 'sde-dpmsolver' has no solver_order 3; wanted 1 or 2")
    return second
