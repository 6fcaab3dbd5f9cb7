"""Sigma schedules: where between the most and the least noise a run stops. Any sampler may follow any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..arrays import F64
from .beta_distribution import beta_ppf
from .config import SchedulerConfig, pick
from .schedule import checked


@dataclass(frozen=True, kw_only=True, eq=False)
class SigmaRange:
    """What a schedule is made from.

    `own` are the levels that the model's timesteps give, falling, shape (num_inference_steps,); `train` those of
    training, rising; the schedule goes from `sigma_max` to `sigma_min`.
    """

    own: F64
    train: F64
    sigma_max: float
    sigma_min: float
    rho: float = 7.0

    @classmethod
    def between(cls, config: SchedulerConfig, ends: F64, own: F64, train: F64) -> SigmaRange:
        """From the first of `ends` to the last, unless the config has a sigma_max or sigma_min."""
        return cls(
            own=own,
            train=train,
            sigma_max=float(ends[0]) if config.sigma_max is None else config.sigma_max,
            sigma_min=float(ends[-1]) if config.sigma_min is None else config.sigma_min,
        )


def _karras(r: SigmaRange) -> F64:
    return np.linspace(r.sigma_max ** (1 / r.rho), r.sigma_min ** (1 / r.rho), len(r.own)) ** r.rho


def _exponential(r: SigmaRange) -> F64:
    return np.exp(np.linspace(np.log(r.sigma_max), np.log(r.sigma_min), len(r.own)))


def _beta(r: SigmaRange) -> F64:
    return r.sigma_min + beta_ppf(1 - np.linspace(0, 1, len(r.own)), 0.6) * (r.sigma_max - r.sigma_min)


def _lu(r: SigmaRange) -> F64:
    log_train = np.log(r.train)
    return np.exp(np.linspace(log_train[-1], log_train[0], len(r.own)))


def _sgm_uniform(r: SigmaRange) -> F64:
    timesteps = np.linspace(len(r.train) - 1, 0, len(r.own) + 1)[:-1]
    return np.exp(np.interp(timesteps, np.arange(len(r.train)), np.log(r.train)))


def _simple(r: SigmaRange) -> F64:
    n = len(r.own)
    sigmas: F64 = r.train[::-1][(np.arange(n) * (len(r.train) / n)).astype(int)]
    return sigmas


def _kl_optimal(r: SigmaRange) -> F64:
    return np.tan(np.linspace(np.arctan(r.sigma_max), np.arctan(r.sigma_min), len(r.own)))


def _align_your_steps(*table: float) -> Callable[[SigmaRange], F64]:
    def sigmas(r: SigmaRange) -> F64:
        places = np.linspace(0, 1, len(r.own) + 1)[:-1]
        return np.exp(np.interp(places, np.linspace(0, 1, len(table)), np.log(table)))

    return sigmas


SIGMA_SCHEDULES: dict[str, Callable[[SigmaRange], F64]] = {
    "model": lambda r: r.own,
    "karras": _karras,  # arXiv:2206.00364 eq. 5
    "exponential": _exponential,  # even in log sigma
    "beta": _beta,  # arXiv:2407.12173, with a = b = 0.6
    "lu": _lu,  # arXiv:2206.00927 sec. 3.4: even in log SNR, over all of the training's levels
    "sgm_uniform": _sgm_uniform,  # even in time, the end left out: github.com/Stability-AI/generative-models
    "simple": _simple,  # every so many of the training's levels: github.com/comfyanonymous/ComfyUI
    # arXiv:2404.14507, the levels given for ten steps; others by interpolation in log sigma
    "ays": _align_your_steps(14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays_sdxl": _align_your_steps(14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "kl_optimal": _kl_optimal,  # arXiv:2404.14507 eq. 20
}
# Those that need no training levels, only where to start and to stop.
RANGE_ONLY = ("karras", "exponential", "beta", "kl_optimal")


def scheduled_sigmas(config: SchedulerConfig, sigma_range: SigmaRange) -> F64:
    """The levels that the config asks for, falling, shape (num_inference_steps,).

    Raises:
        UsageError: those given as a list do not fall, or are not as many as the steps.
    """
    if isinstance(config.sigmas, tuple):
        return checked("sigmas", config.sigmas, len(sigma_range.own))
    return pick("sigmas", config.sigmas or "model", SIGMA_SCHEDULES)(sigma_range)
