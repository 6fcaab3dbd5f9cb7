"""DPM-Solver++ singlestep, orders 1 to 3: Lu et al., arXiv:2206.00927, algorithms 1 and 2; arXiv:2211.01095, alg. 1.

A block of 1, 2 or 3 calls goes on from where it began: call k of a block takes the latents back there, and makes a step
of order k to the next level.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgediffusion.engines.errors import UsageError

from ..arrays import F64
from .base import LinearSampler, Move
from .config import SchedulerConfig, pick
from .dpm_multistep import preserving_sampler
from .dpm_terms import DPM, check_final, terms
from .levels import Levels, preserving_levels, solver_flow_levels

read_config = replace(
    DPM,
    reads=DPM.reads - {"timestep_spacing", "steps_offset"},
    defaults=replace(DPM.defaults, lower_order_final=False),
)


def dpmpp_2s(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class: n calls. Latents as for `dpmpp_2m`.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    check_final(c)
    if c.algorithm_type == "sde-dpmsolver":
        raise UsageError("unknown algorithm_type 'sde-dpmsolver'; known: dpmsolver, dpmsolver++, sde-dpmsolver++")
    if c.algorithm_type == "dpmsolver" and c.thresholding:
        raise UsageError("scheduler config: thresholding needs algorithm_type 'dpmsolver++' or 'sde-dpmsolver++'")
    make = solver_flow_levels if c.use_flow_sigmas else preserving_levels
    levels = make(c, num_inference_steps)
    moves = tuple(_moves(c, levels, i, order) for i, order in enumerate(_orders(c, num_inference_steps)))
    return preserving_sampler(c, levels, moves)


def _orders(config: SchedulerConfig, n: int) -> list[int]:
    """How far each call is in its block; at the end there is none that is cut off, or that steps far to zero noise."""
    order = config.solver_order
    block = list(range(1, order + 1))
    lower_at_end = config.lower_order_final or n % order != 0 or config.final_sigmas_type == "zero"
    if order == 1 or not lower_at_end:
        return block * (n // order)
    whole, left = divmod(n, order)
    cut_off = {2: [1, 1], 3: [1, 2, 1]}[order]
    orders = block * whole + block[:left] if left else block * (whole - 1) + cut_off
    if config.final_sigmas_type == "zero":
        orders[-1] = 1
    return orders


def _moves(config: SchedulerConfig, levels: Levels, i: int, order: int) -> tuple[Move, ...]:
    """By the arrays of history: none, or the latents where the block began and predictions, the last one first."""
    size = config.solver_order if config.solver_order > 1 else 0
    choices = []
    for known in range(config.solver_order):
        use = min(order, known + 1)
        began = 0 if use == 1 else 2
        keep = (began, 1, 3)[: min(size, known + 2)]
        choices.append(replace(_row(config, levels, i, use), keep=keep))
    # The latents come with a prediction, so a history of one array does not occur.
    return (choices[0], *choices)


def _row(config: SchedulerConfig, levels: Levels, i: int, order: int) -> Move:
    """From the start of the block, `order` calls back, to the next level; predictions' weights, the last first."""
    begin = i - order + 1
    t = terms(config, levels, begin, i + 1)
    first = t.first
    if order == 1:
        return Move((float(t.latents), float(t.constant)), noise=t.noise)
    h = levels.lambdas[begin : i + 2] - levels.lambdas[begin]
    weights: F64
    if order == 2:
        r0 = h[1] / h[2]
        weights = np.array([0, t.constant]) + pick("solver_type", config.solver_type, first) * np.array([1, -1]) / r0
    else:
        r0, r1 = h[2] / h[3], h[1] / h[3]
        near, far = np.array([0, 1, -1]) / r1, np.array([1, 0, -1]) / r0
        differences = {
            "midpoint": first["heun"] * far,
            "heun": first["heun"] * (r0 * near - r1 * far) / (r0 - r1) + t.second * 2 * (far - near) / (r0 - r1),
        }
        weights = np.array([0, 0, t.constant]) + pick("solver_type", config.solver_type, differences)
    newest, *earlier = weights.tolist()
    return Move((0.0, newest, float(t.latents), *earlier), noise=t.noise)
