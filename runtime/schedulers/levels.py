"""The levels of one run: timesteps, and how much signal and noise the latents hold at each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgediffusion.engines.errors import UsageError

from ..arrays import F64
from .config import SchedulerConfig, pick
from .schedule import checked, given_timesteps, spaced_timesteps, timesteps_at, train_sigmas
from .sigmas import SigmaRange, scheduled_sigmas


@dataclass(frozen=True, kw_only=True, eq=False)
class Levels:
    """`timesteps` (n,); before each and after the last, latents = alphas * x0 + sigmas * noise (n + 1,)."""

    timesteps: F64
    alphas: F64
    sigmas: F64

    @property
    def ratios(self) -> F64:
        """Noise over signal."""
        with np.errstate(divide="ignore"):
            ratios: F64 = self.sigmas / self.alphas
        return ratios

    @property
    def lambdas(self) -> F64:
        """log(signal / noise), rising to infinity where there is no noise."""
        with np.errstate(divide="ignore"):
            lambdas: F64 = np.log(self.alphas) - np.log(self.sigmas)
        return lambdas


def exploding_levels(config: SchedulerConfig, num_inference_steps: int) -> Levels:
    """Latents are x0 + sigma * noise (arXiv:2206.00364). Timesteps are spaced first, and may be fractions.

    Raises:
        UsageError: the steps, timesteps or sigmas cannot be used.
    """
    train = train_sigmas(config)
    timesteps = given_timesteps(config, num_inference_steps, len(train))
    if timesteps is None:
        timesteps = spaced_timesteps(config, num_inference_steps)
    end = final_sigma(config, train[0])
    if config.interpolation_type == "log_linear":
        ends = np.geomspace(train[-1], train[0], num_inference_steps + 1)
        own = ends[:-1]
        # As in diffusers, where the timesteps stay those of the spacing.
        end = train[0] if config.sigmas == "model" else end
    else:
        ends = own = np.interp(timesteps, np.arange(len(train)), train)
    sigmas = scheduled_sigmas(config, SigmaRange.between(config, ends, own, train))
    if config.sigmas != "model":
        timesteps = timesteps_at(sigmas, train)
    sigmas = np.append(sigmas, end)
    return Levels(timesteps=timesteps, alphas=np.ones_like(sigmas), sigmas=sigmas)


# The schedules whose timesteps diffusers cuts off to whole ones; the others are rounded.
_TRUNCATED = frozenset({"exponential", "beta"})


def preserving_levels(
    config: SchedulerConfig, num_inference_steps: int, *, stop_at_own_end: bool = False, whole: bool = True
) -> Levels:
    """Latents have alpha^2 + sigma^2 = 1, or are of a flow. Timesteps are whole, and 0 is for the end.

    `stop_at_own_end`: final_sigmas_type "sigma_min" is the last level of a schedule, not the least of the training.
    `whole`: the timesteps of a schedule are rounded, else cut off.

    Raises:
        UsageError: the steps, timesteps or sigmas cannot be used.
    """
    train = train_sigmas(config)
    timesteps = given_timesteps(config, num_inference_steps, len(train))
    if timesteps is None:
        # lambda = -log(sigma); levels below lambda_min_clipped are left out.
        stop = config.num_train_timesteps - int(np.sum(-np.log(train) < config.lambda_min_clipped))
        timesteps = spaced_timesteps(config, num_inference_steps, stop=stop, skip_lowest=True)
    timesteps = timesteps.round()
    ratios = np.interp(timesteps, np.arange(len(train)), train)
    end = train[0]
    if config.sigmas != "model":
        ratios = scheduled_sigmas(config, SigmaRange.between(config, train[::-1], ratios, train))
        timesteps = timesteps_at(ratios, train)
        if whole and config.sigmas not in _TRUNCATED:
            timesteps = timesteps.round()
        end = ratios[-1] if stop_at_own_end else end
    ratios = np.append(ratios, final_sigma(config, end))
    alphas = 1 / np.hypot(ratios, 1)
    return Levels(timesteps=np.trunc(timesteps), alphas=alphas, sigmas=alphas * ratios)


def shifted(sigmas: F64, shift: float) -> F64:
    """arXiv:2403.03206 eq. 23."""
    result: F64 = shift * sigmas / (1 + (shift - 1) * sigmas)
    return result


def dynamically_shifted(config: SchedulerConfig, sigmas: F64) -> F64:
    """As far as `mu` says, which follows from the size of the picture.

    Raises:
        UsageError: there is no mu.
    """
    if config.mu is None:
        raise UsageError("scheduler config: use_dynamic_shifting needs a number mu beside it; it has none")
    shifts = {"exponential": float(np.exp(config.mu)), "linear": config.mu}
    mu = pick("time_shift_type", config.time_shift_type, shifts)
    result: F64 = mu / (mu + (1 / sigmas - 1))
    return result


def with_mu(config: Mapping[str, Any], latents: tuple[int, ...]) -> Mapping[str, Any]:
    """A scheduler config for latents of a shape (..., height, width): where it shifts dynamically, with their `mu`.

    As diffusers has it for Stable Diffusion 3 and Flux (arXiv:2403.03206 sec. 5.3.2), whose networks see squares of two
    by two latents: mu is a line over the number of squares. A config that says its own `mu` keeps it.
    """
    if not config.get("use_dynamic_shifting") or config.get("mu") is not None:
        return config
    squares = (latents[-2] // 2) * (latents[-1] // 2)
    least, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return {**config, "mu": low + (high - low) * (squares - least) / (most - least)}


def stretched(sigmas: F64, shift_terminal: float | None) -> F64:
    """So that the last is `shift_terminal`."""
    if not shift_terminal:
        return sigmas
    result: F64 = 1 - (1 - sigmas) / ((1 - sigmas[-1]) / (1 - shift_terminal))
    return result


def given_or(config: SchedulerConfig, even: F64) -> F64:
    """The list of sigmas of the config, which is shifted like the `even` ones that it stands for.

    Raises:
        UsageError: the config has a list of timesteps; or as `checked`.
    """
    if config.timesteps is not None:
        raise UsageError("a list of timesteps cannot be used with use_flow_sigmas; give a list of sigmas")
    return checked("sigmas", config.sigmas, len(even)) if isinstance(config.sigmas, tuple) else even


def flow_levels(config: SchedulerConfig, sigmas: F64, end: float) -> Levels:
    """Latents are (1 - sigma) * x0 + sigma * noise; `sigmas` (n,) fall from 1, then comes `end`."""
    levels = np.append(sigmas, end)
    return Levels(timesteps=np.trunc(sigmas * config.num_train_timesteps), alphas=1 - levels, sigmas=levels)


def solver_flow_levels(config: SchedulerConfig, num_inference_steps: int) -> Levels:
    """The flow that the DPM solvers take: evenly spaced, shifted, the lowest left out.

    Raises:
        UsageError: the steps or sigmas cannot be used.
    """
    if isinstance(config.sigmas, str) and config.sigmas != "model":
        raise UsageError(
            f"sigmas {config.sigmas!r} cannot be used with use_flow_sigmas by this sampler; leave them out"
        )
    n = check_steps(config, num_inference_steps)
    even = (1.0 - np.linspace(1, 1 / config.num_train_timesteps, n + 1))[::-1][:-1]
    shift = config.flow_shift if config.mu is None else float(np.exp(config.mu))
    end = final_sigma(config, float(train_sigmas(config)[0]))
    return flow_levels(config, shifted(given_or(config, even), shift), end)


def check_steps(config: SchedulerConfig, num_inference_steps: int) -> int:
    """num_inference_steps, when it is 1 to num_train_timesteps.

    Raises:
        UsageError: it is not.
    """
    if not 1 <= num_inference_steps <= config.num_train_timesteps:
        raise UsageError(f"num_inference_steps {num_inference_steps}; wanted 1 to {config.num_train_timesteps}")
    return num_inference_steps


def final_sigma(config: SchedulerConfig, sigma_min: float) -> float:
    """The level at which the run ends."""
    return pick("final_sigmas_type", config.final_sigmas_type, {"zero": 0.0, "sigma_min": float(sigma_min)})
