"""DEIS in log rho, orders 1 to 3: Zhang, Chen, Fast Sampling with Exponential Integrator, arXiv:2204.13902."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.polynomial import Polynomial

from .base import LinearSampler, Move, Prediction, pairs, predicted_sigmas, x0_table
from .config import SchedulerConfig
from .dpm_terms import PRESERVING, noise_table
from .levels import Levels, flow_levels, preserving_levels, solver_flow_levels
from .limits import threshold_limit

NAMES = {
    "algorithm_type": dict.fromkeys(("dpmsolver", "dpmsolver++"), "deis"),
    "solver_type": dict.fromkeys(("midpoint", "heun", "bh1", "bh2"), "logrho"),
}
read_config = replace(
    PRESERVING,
    accepts={
        **PRESERVING.accepts,
        "algorithm_type": ("deis", "dpmsolver", "dpmsolver++"),
        "solver_type": ("logrho", "midpoint", "heun", "bh1", "bh2"),
    },
    defaults=replace(PRESERVING.defaults, final_sigmas_type="sigma_min"),
)


def deis(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents have alpha^2 + sigma^2 = 1, or are of a flow.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    if c.use_flow_sigmas:
        flow = solver_flow_levels(c, num_inference_steps).sigmas[:-1]
        levels = flow_levels(c, flow, float(flow[-1]))
    else:
        levels = preserving_levels(c, num_inference_steps, stop_at_own_end=True)
    alphas, sigmas = levels.alphas[:-1], levels.sigmas[:-1]
    return LinearSampler(
        timesteps=levels.timesteps.astype(np.float32),
        sigmas=levels.ratios,
        init_noise_sigma=1.0,
        noising=pairs(alphas, sigmas),
        prediction=Prediction.derived(
            x0_table(c, alphas, sigmas),
            noise_table(alphas, predicted_sigmas(c, alphas, sigmas)),
            threshold_limit(c),
        ),
        moves=tuple(_moves(c, levels, i) for i in range(len(levels.timesteps))),
    )


def _moves(config: SchedulerConfig, levels: Levels, i: int) -> tuple[Move, ...]:
    n = len(levels.timesteps)
    left = n - i if config.lower_order_final and n < 15 else config.solver_order
    moves = []
    for known in range(min(config.solver_order, i + 1)):
        order = min(config.solver_order, left, known + 1)
        keep = (1, *range(2, known + 2))[: config.solver_order - 1]
        moves.append(Move((float(levels.alphas[i + 1] / levels.alphas[i]), *_integrals(levels, i, order)), keep))
    return tuple(moves)


def _integrals(levels: Levels, i: int, order: int) -> list[float]:
    """Of the Lagrange polynomials in log rho through the last levels, over rho in the step (eq. 15), times alpha."""
    rhos = levels.ratios
    logs = np.log(rhos[: i + 2])
    known = logs[i - np.arange(order)]
    weights = []
    for k in range(order):
        others = np.delete(known, k)
        basis = Polynomial.fromroots(others) / np.prod(known[k] - others) if order > 1 else Polynomial([1.0])
        # The integral of p(log rho) is rho * (p - p' + p'' - ...)(log rho).
        primitive = sum(((-1) ** m * basis.deriv(m) for m in range(1, order)), basis)
        area = rhos[i + 1] * primitive(logs[i + 1]) - rhos[i] * primitive(logs[i])
        weights.append(float(levels.alphas[i + 1] * area))
    return weights
