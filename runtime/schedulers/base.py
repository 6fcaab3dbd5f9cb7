"""What the loop asks of a sampler, and the small core that most samplers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgediffusion.engines.errors import UsageError

from ..arrays import F32, F64
from .config import SchedulerConfig, pick


class Scheduler(Protocol):
    """Frozen tables and a pure step: history and noise are arguments, so nothing leaks from one run into another."""

    @property
    def timesteps(self) -> F32:
        """What the UNet is given at each call, descending. Shape (calls,): some samplers call it twice a step."""
        ...

    @property
    def sigmas(self) -> F64:
        """Noise level over signal level before each call and after the last. Shape (calls + 1,)."""
        ...

    @property
    def init_noise_sigma(self) -> float:
        """The starting noise is standard normal noise times this."""
        ...

    @property
    def draws_noise(self) -> bool:
        """Whether `step` needs fresh standard normal noise."""
        ...

    def scale_model_input(self, latents: F32, i: int) -> F32:
        """What the UNet is shown for `latents` (batch, 4, height, width) at call `i`."""
        ...

    def step(
        self, model_output: F32, i: int, latents: F32, history: tuple[F32, ...], noise: F32 | None
    ) -> tuple[F32, tuple[F32, ...]]:
        """The latents after call `i`, and the history to hand to the next step; the first step gets `()`."""
        ...


# How the network's output gives x0, when latents = alpha * x0 + sigma * noise:  x0 = c[0] * latents + c[1] * output.
# Networks are trained on latents with alpha^2 + sigma^2 = 1; `r` brings others there.
# v_prediction: arXiv:2202.00512, appendix D.
PREDICTION_TYPES: dict[str, Callable[[F64, F64], tuple[F64, F64]]] = {
    "epsilon": lambda alpha, sigma: (1 / alpha, -sigma / alpha),
    "v_prediction": lambda alpha, sigma: (alpha / (r := np.hypot(alpha, sigma)) ** 2, -sigma / r),
    "sample": lambda alpha, sigma: (np.zeros_like(alpha), np.ones_like(alpha)),
}

Weights = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearMultistep:
    """A sampler whose step is a weighted sum of the latents and the x0 predicted now and before.

    `weights[i][k]` are the weights of step i when k earlier x0 are at hand: of the latents, of x0, of the x0 before it.
    `to_x0[i]` are the weights of the latents and of the network's output in x0. Tables are computed in float64; the
    arithmetic of a step is in the latents' own dtype.
    """

    timesteps: F32
    sigmas: F64
    init_noise_sigma: float
    to_x0: tuple[tuple[float, float], ...]
    weights: tuple[Weights, ...]
    input_scale: tuple[float, ...] | None = None
    history_length: int = 0
    draws_noise: bool = False

    def __post_init__(self) -> None:
        self.timesteps.setflags(write=False)
        self.sigmas.setflags(write=False)

    def scale_model_input(self, latents: F32, i: int) -> F32:
        """See `Scheduler`."""
        return latents if self.input_scale is None else latents * self.input_scale[i]

    def predict_x0(self, model_output: F32, i: int, latents: F32) -> F32:
        """The clean latents, as the network sees them at step `i`. All shapes (batch, channels, height, width)."""
        of_latents, of_output = self.to_x0[i]
        x0: F32 = of_output * model_output
        if of_latents != 0:
            x0 += of_latents * latents
        return x0

    def step(
        self, model_output: F32, i: int, latents: F32, history: tuple[F32, ...], noise: F32 | None
    ) -> tuple[F32, tuple[F32, ...]]:
        """See `Scheduler`."""
        history = (self.predict_x0(model_output, i, latents), *history)
        choices = self.weights[i]
        of_latents, *of_history = choices[min(len(history), len(choices)) - 1]
        result: F32 = of_latents * latents
        for weight, x0 in zip(of_history, history, strict=False):
            result += weight * x0
        return result, history[: self.history_length]


def x0_table(config: SchedulerConfig, alphas: F64, sigmas: F64) -> tuple[tuple[float, float], ...]:
    """`LinearMultistep.to_x0` for latents = alphas[i] * x0 + sigmas[i] * noise; shapes (calls,).

    Raises:
        UsageError: the prediction type is unknown, or says nothing of x0 where there is noise alone.
    """
    convert = pick("prediction_type", config.prediction_type, PREDICTION_TYPES)
    with np.errstate(divide="ignore"):
        of_latents, of_output = convert(alphas, sigmas)
    if not np.isfinite(of_output).all():
        raise UsageError(
            f"scheduler config: prediction_type {config.prediction_type!r} cannot start from zero SNR; "
            "use timestep_spacing 'leading', or a model trained for 'v_prediction'"
        )
    return tuple(zip(of_latents.tolist(), of_output.tolist(), strict=True))


def first_order_weights(alphas: F64, sigmas: F64, next_alphas: F64, next_sigmas: F64) -> tuple[F64, F64]:
    """Weights of the latents and of x0 in the step that keeps the noise direction. Shapes (calls,).

    With alpha^2 + sigma^2 = 1 this is DDIM (arXiv:2010.02502 eq. 12, sigma_t = 0) and first-order DPM-Solver++
    (arXiv:2211.01095 eq. 9); with alpha = 1 it is Euler's method on the probability flow (arXiv:2206.00364 alg. 1).
    """
    of_latents = next_sigmas / sigmas
    return of_latents, next_alphas - of_latents * alphas


def by_step(*columns: F64) -> Weights:
    """Columns of shape (calls,) as one tuple of Python floats a step."""
    return tuple(tuple(row) for row in np.stack(columns, axis=1).tolist())
