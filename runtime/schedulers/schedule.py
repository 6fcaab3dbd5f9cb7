"""Noise levels and timesteps, before any sampler: all in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgediffusion.engines.errors import UsageError

from ..arrays import F64
from .config import SchedulerConfig, pick


def _betas_for_alpha_bar(config: SchedulerConfig, alpha_bar: Callable[[F64], F64]) -> F64:
    # arXiv:2102.09672 eq. 17, betas capped at 0.999
    power = alpha_bar(np.linspace(0, 1, config.num_train_timesteps + 1))
    betas: F64 = np.minimum(1 - power[1:] / power[:-1], 0.999)
    return betas


def _sigmoid(x: F64) -> F64:
    y: F64 = 1 / (1 + np.exp(-x))
    return y


def _laplace(t: F64) -> F64:
    # arXiv:2407.03297, table 1, as diffusers has it: the root of the signal's power, kept off infinite SNR
    half = 0.5 - t
    snr = np.exp(-0.5 * np.copysign(1, half) * np.log(1 - 2 * np.abs(half) + 1e-6))
    alpha_bar: F64 = np.sqrt(snr / (1 + snr))
    return alpha_bar


BETA_SCHEDULES: dict[str, Callable[[SchedulerConfig], F64]] = {
    "linear": lambda c: np.linspace(c.beta_start, c.beta_end, c.num_train_timesteps),
    "scaled_linear": lambda c: np.linspace(c.beta_start**0.5, c.beta_end**0.5, c.num_train_timesteps) ** 2,
    "squaredcos_cap_v2": lambda c: _betas_for_alpha_bar(c, lambda t: np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2),
    "exp": lambda c: _betas_for_alpha_bar(c, lambda t: np.exp(-12 * t)),
    "laplace": lambda c: _betas_for_alpha_bar(c, _laplace),
    # arXiv:2203.02923
    "sigmoid": lambda c: (
        c.beta_start + _sigmoid(np.linspace(-6, 6, c.num_train_timesteps)) * (c.beta_end - c.beta_start)
    ),
}


def alphas_cumprod(config: SchedulerConfig) -> F64:
    """Signal power at each training timestep, prod(1 - beta), shape (num_train_timesteps,), in [0, 1).

    Raises:
        UsageError: trained_betas are not as many, or the schedule is unknown.
    """
    if config.trained_betas is not None:
        betas = np.asarray(config.trained_betas, np.float64)
        if len(betas) != config.num_train_timesteps:
            wanted = f"wanted num_train_timesteps, {config.num_train_timesteps}"
            raise UsageError(f"scheduler config: trained_betas of {len(betas)} values; {wanted}")
    else:
        betas = pick("beta_schedule", config.beta_schedule, BETA_SCHEDULES)(config)
    result: F64 = (1 - betas).cumprod(dtype=np.float64)
    if config.rescale_betas_zero_snr:
        # arXiv:2305.08891 alg. 1
        root = np.sqrt(result)
        result[:] = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return result


def train_sigmas(config: SchedulerConfig) -> F64:
    """Noise over signal at each training timestep, sqrt((1 - a) / a), rising, shape (num_train_timesteps,)."""
    a = alphas_cumprod(config)
    if config.rescale_betas_zero_snr:
        a[-1] = 2**-24  # diffusers keeps the last sigma finite so
    return np.sqrt((1 - a) / a)


# arXiv:2305.08891 table 2: n timesteps below `stop`; where `skip` is 1, the lowest of n + 1 is left out.
def _linspace(config: SchedulerConfig, n: int, stop: int, skip: int) -> F64:
    return np.linspace(0, stop - 1, n + skip)[::-1][:n]


def _leading(config: SchedulerConfig, n: int, stop: int, skip: int) -> F64:
    stride = stop // (n + skip)
    return np.arange(skip, n + skip, dtype=np.float64)[::-1] * stride + config.steps_offset


def _trailing(config: SchedulerConfig, n: int, stop: int, skip: int) -> F64:
    # There is nothing at 0 to skip. Rounding makes `arange` one too long for some n (61, 103, ...).
    timesteps: F64 = np.arange(stop, 0, -config.num_train_timesteps / n)[:n].round() - 1
    return timesteps


TIMESTEP_SPACINGS = {"linspace": _linspace, "leading": _leading, "trailing": _trailing}


def spaced_timesteps(
    config: SchedulerConfig, num_inference_steps: int, *, stop: int | None = None, skip_lowest: bool = False
) -> F64:
    """Descending timesteps below `stop` (default num_train_timesteps), shape (num_inference_steps,).

    Raises:
        UsageError: num_inference_steps is not in 1 to num_train_timesteps, or the spacing is unknown.
    """
    if not 1 <= num_inference_steps <= config.num_train_timesteps:
        raise UsageError(f"num_inference_steps {num_inference_steps}; wanted 1 to {config.num_train_timesteps}")
    space = pick("timestep_spacing", config.timestep_spacing, TIMESTEP_SPACINGS)
    stop = config.num_train_timesteps if stop is None else stop
    timesteps = space(config, num_inference_steps, stop, int(skip_lowest))
    if num_inference_steps > 1 and timesteps[0] == timesteps[-1]:
        raise UsageError(
            f"num_inference_steps {num_inference_steps} with timestep_spacing {config.timestep_spacing!r}: "
            "all timesteps are the same; use fewer steps"
        )
    return timesteps


def checked(kind: str, values: tuple[float, ...], num_inference_steps: int) -> F64:
    """A list of `kind` as an array; a 0 after the last sigma is left out.

    Raises:
        UsageError: it does not fall, or is not of num_inference_steps values.
    """
    array = np.asarray(values, np.float64)
    if kind == "sigmas" and len(array) == num_inference_steps + 1 and array[-1] == 0:
        array = array[:-1]
    if len(array) != num_inference_steps:
        raise UsageError(f"{kind} of {len(array)} values; wanted num_inference_steps, {num_inference_steps}")
    if not (np.isfinite(array).all() and (np.diff(array) < 0).all() and (kind == "timesteps" or array[-1] > 0)):
        raise UsageError(f"{kind} {', '.join(map(str, values))}; wanted finite numbers above 0 that fall")
    return array


def given_timesteps(config: SchedulerConfig, num_inference_steps: int, stop: int) -> F64 | None:
    """The list of timesteps of the config, if it has one.

    Raises:
        UsageError: they do not fall, are not num_inference_steps, or go to `stop` or below 0.
    """
    if config.timesteps is None:
        return None
    timesteps = checked("timesteps", config.timesteps, num_inference_steps)
    if timesteps[0] >= stop or timesteps[-1] < 0:
        raise UsageError(f"timesteps from {timesteps[0]:g} to {timesteps[-1]:g}; wanted from below {stop} to 0 or more")
    return timesteps


def whole_timesteps(config: SchedulerConfig, num_inference_steps: int) -> NDArray[np.int64]:
    """Descending timesteps of the training, spaced or given, rounded, shape (num_inference_steps,).

    Raises:
        UsageError: as `spaced_timesteps` or `given_timesteps`, or steps_offset goes beyond the training.
    """
    given = given_timesteps(config, num_inference_steps, config.num_train_timesteps)
    timesteps = (spaced_timesteps(config, num_inference_steps) if given is None else given).round().astype(np.int64)
    if timesteps[0] >= config.num_train_timesteps:
        raise UsageError(
            f"num_inference_steps {num_inference_steps} with steps_offset {config.steps_offset} starts at timestep "
            f"{timesteps[0]}, beyond the {config.num_train_timesteps} of the training; use fewer steps"
        )
    return timesteps


def timesteps_at(sigmas: F64, train: F64) -> F64:
    """The (fractional) training timesteps at which the noise level is `sigmas`, interpolated in log sigma."""
    log_train = np.log(train)
    log_sigmas = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(log_train, log_sigmas, side="right") - 1, 0, len(train) - 2)
    w = np.clip((log_train[low] - log_sigmas) / (log_train[low] - log_train[low + 1]), 0, 1)
    timesteps: F64 = (1 - w) * low + w * (low + 1)
    return timesteps
