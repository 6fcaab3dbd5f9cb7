"""UniPC: Zhao et al., UniPC: A Unified Predictor-Corrector Framework, arXiv:2302.04867, algorithms 5 to 8."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from edgediffusion.engines.errors import UsageError

from ..arrays import F64
from .base import LinearSampler, Move, pairs
from .config import SchedulerConfig, pick
from .dpm_terms import PRESERVING, solver_prediction
from .levels import (
    Levels,
    check_steps,
    dynamically_shifted,
    final_sigma,
    flow_levels,
    given_or,
    preserving_levels,
    shifted,
    stretched,
)
from .limits import threshold_limit

read_config = replace(
    PRESERVING,
    reads=PRESERVING.reads
    | {"final_sigmas_type", "rescale_betas_zero_snr", "predict_x0", "disable_corrector", "shift_terminal"},
    accepts={"solver_order": tuple(range(1, 7)), "solver_p": (None,)},
    renamed={"solver_type": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")},
    defaults=replace(PRESERVING.defaults, solver_type="bh2"),
)
# B(h) of eq. 7
SOLVER_TYPES = {"bh1": lambda h: h, "bh2": math.expm1}


def unipc(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents have alpha^2 + sigma^2 = 1, or are of a flow.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    levels = _levels(c, num_inference_steps)
    limit = threshold_limit(c) if c.predict_x0 else None
    return LinearSampler(
        timesteps=levels.timesteps.astype(np.float32),
        sigmas=levels.ratios,
        init_noise_sigma=1.0,
        noising=pairs(levels.alphas[:-1], levels.sigmas[:-1]),
        prediction=solver_prediction(c, levels, of_noise=not c.predict_x0, limit=limit),
        moves=tuple(_moves(c, levels, i) for i in range(len(levels.timesteps))),
    )


def _levels(c: SchedulerConfig, num_inference_steps: int) -> Levels:
    if not c.use_flow_sigmas:
        return preserving_levels(c, num_inference_steps, stop_at_own_end=True)
    if isinstance(c.sigmas, str) and c.sigmas not in ("model", "karras"):
        raise UsageError(f"sigmas {c.sigmas!r} cannot be used with use_flow_sigmas by unipc; it takes: karras, model")
    n = check_steps(c, num_inference_steps)
    if c.sigmas == "karras":
        # the schedule of noise over signal, seen as a flow's
        own = preserving_levels(c, n).ratios[:-1]
        sigmas = own / (own + 1)
    else:
        even = given_or(c, np.linspace(1, 1 / c.num_train_timesteps, n + 1)[:-1])
        sigmas = dynamically_shifted(c, even) if c.use_dynamic_shifting else shifted(even, c.flow_shift)
        sigmas = stretched(sigmas, c.shift_terminal)
        if abs(sigmas[0] - 1) < 1e-6:
            sigmas[0] -= 1e-6  # diffusers keeps a little signal so
    return flow_levels(c, sigmas, final_sigma(c, sigmas[-1]))


def _order(config: SchedulerConfig, levels: Levels, i: int) -> int:
    if levels.ratios[i + 1] in (0, levels.ratios[i]):
        return 1  # there is nothing to extrapolate to no noise, or along a repeated level
    left = len(levels.timesteps) - i
    return min(config.solver_order, left) if config.lower_order_final else config.solver_order


def _moves(config: SchedulerConfig, levels: Levels, i: int) -> tuple[Move, ...]:
    """By the arrays of history: none, or the latents of the step before and predictions, the last one first."""
    choices = []
    for known in range(min(config.solver_order, i) + 1):
        order = min(_order(config, levels, i), known + 1)
        of_latents, of_predictions = _update(config, levels, i, i + 1, order)
        # Columns: latents, prediction, the step before's latents, earlier predictions.
        weights = (of_latents, of_predictions[0], 0.0, *of_predictions[1:])
        corrector = None
        if known > 0 and i - 1 not in config.disable_corrector:
            corrector = _corrector(config, levels, i, min(_order(config, levels, i - 1), known))
        keep = (0, 1, *range(3, known + 3))[: config.solver_order + 1]
        choices.append(Move(weights if order > 1 else weights[:2], keep, corrector=corrector))
    # The latents come with a prediction, so a history of one array does not occur.
    return (choices[0], *choices)


def _corrector(config: SchedulerConfig, levels: Levels, i: int, order: int) -> tuple[float, ...]:
    """The step that led to level `i` again, with the prediction made there."""
    of_latents, (of_new, *of_predictions) = _update(config, levels, i - 1, i, order, corrects=True)
    return (0.0, of_new, of_latents, *of_predictions)


def _update(
    config: SchedulerConfig, levels: Levels, s: int, t: int, order: int, *, corrects: bool = False
) -> tuple[float, list[float]]:
    """Weights of the latents at level `s`, and of the predictions at `s` and before; first at `t` where it corrects."""
    alphas, sigmas, lambdas = levels.alphas, levels.sigmas, levels.lambdas
    h = float(lambdas[t] - lambdas[s])
    hh = -h if config.predict_x0 else h
    scale = float(alphas[t] if config.predict_x0 else sigmas[t])
    of_latents = float(sigmas[t] / sigmas[s] if config.predict_x0 else alphas[t] / alphas[s])
    of_predictions = np.zeros(order)
    of_predictions[0] = -scale * math.expm1(hh)
    of_new = 0.0
    if order > 1 or corrects:
        r = (lambdas[s - np.arange(1, order)] - lambdas[s]) / h
        b_h = pick("solver_type", config.solver_type, SOLVER_TYPES)(hh)
        rhos = _rhos(hh, b_h, r, corrects)
        differences = -scale * b_h * rhos[: order - 1] / r
        of_predictions[1:] += differences
        of_predictions[0] -= differences.sum()
        if corrects:
            of_new = -scale * b_h * float(rhos[-1])
            of_predictions[0] -= of_new
    return of_latents, [of_new, *of_predictions.tolist()] if corrects else of_predictions.tolist()


def _rhos(hh: float, b_h: float, r: F64, corrects: bool) -> F64:
    """The weights of the differences: theorem 3.1; the shortest are the paper's 1 / 2."""
    order = len(r) + 1
    if order == (1 if corrects else 2):
        return np.array([0.5])
    phi = math.expm1(hh) / hh - 1
    b = []
    for k in range(1, order + 1):
        b.append(phi * math.factorial(k) / b_h)
        phi = phi / hh - 1 / math.factorial(k + 1)
    rows = np.append(r, 1.0) ** np.arange(order)[:, None]
    size = order if corrects else order - 1
    solution: F64 = np.linalg.solve(rows[:size, :size], np.array(b[:size]))
    return solution
