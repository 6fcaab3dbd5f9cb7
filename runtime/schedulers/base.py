"""What the loop asks of a sampler, and the small core that the samplers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    def draws_noise(self, i: int) -> bool:
        """Whether `step` needs fresh standard normal noise at call `i`."""
        ...

    def scale_model_input(self, latents: F32, i: int) -> F32:
        """What the UNet is shown for `latents` (batch, 4, height, width) at call `i`."""
        ...

    def add_noise(self, x0: F32, noise: F32, i: int) -> F32:
        """Latents to start with at call `i`, from clean latents and standard normal noise of the same shape."""
        ...

    def x0(self, model_output: F32, i: int, latents: F32) -> F32:
        """What the network takes for the latents without noise, at call `i`; not finite where it sees noise alone."""
        ...

    def step(
        self, model_output: F32, i: int, latents: F32, history: tuple[F32, ...], noise: F32 | None
    ) -> tuple[F32, tuple[F32, ...]]:
        """The latents after call `i`, and the history to hand to the next step; the first step gets `()`."""
        ...


# How the network's output gives x0, when latents = alpha * x0 + sigma * noise:  x0 = c[0] * latents + c[1] * output.
# Networks are trained on latents with alpha^2 + sigma^2 = 1; `r` brings others there.
# v_prediction: arXiv:2202.00512, appendix D. flow_prediction: arXiv:2209.03003, alpha = 1 - sigma.
PREDICTION_TYPES: dict[str, Callable[[F64, F64, F64], tuple[F64, F64]]] = {
    "epsilon": lambda alpha, sigma, r: (1 / alpha, -sigma / alpha),
    "v_prediction": lambda alpha, sigma, r: (alpha / r**2, -sigma / r),
    "sample": lambda alpha, sigma, r: (np.zeros_like(alpha), np.ones_like(alpha)),
    "flow_prediction": lambda alpha, sigma, r: (np.ones_like(alpha), -sigma),
}

Pairs = tuple[tuple[float, float], ...]
Limit = Callable[[F32], F32]


@dataclass(frozen=True)
class Move:
    """One way to take a step: `weights` of the columns (latents, prediction, *history), and of fresh noise, if any.

    `keep` are the columns that become the history, -1 the noise. A `corrector` is one more row of weights: what the
    latents are replaced with before anything else.
    """

    weights: tuple[float, ...]
    keep: tuple[int, ...] = ()
    noise: float | None = None
    corrector: tuple[float, ...] | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a sampler's mathematics is about: x0, the noise, or the derivative.

    `table[i]` are the weights of the latents and of the network's output in it, at call `i`. A `limit` works on x0:
    then the table gives x0, and `from_x0[i]` the prediction, where it is not x0 itself, from the latents and x0.
    `to_x0[i]` are the weights in x0, where the table's are in something else.
    """

    table: Pairs
    limit: Limit | None = None
    from_x0: Pairs | None = None
    to_x0: Pairs | None = None

    @classmethod
    def derived(cls, to_x0: Pairs, from_x0: Pairs, limit: Limit | None = None) -> Prediction:
        """One that is linear in x0; without a limit the two tables become one."""
        if limit is not None:
            return cls(to_x0, limit, from_x0)
        return cls(tuple((a + b * c, b * d) for (a, b), (c, d) in zip(from_x0, to_x0, strict=True)), to_x0=to_x0)

    def x0(self, model_output: F32, i: int, latents: F32) -> F32:
        """Without the limit; all shapes (batch, channels, height, width)."""
        return weighted_sum((self.to_x0 or self.table)[i], (latents, model_output))

    def __call__(self, model_output: F32, i: int, latents: F32) -> F32:
        """All shapes (batch, channels, height, width)."""
        result = weighted_sum(self.table[i], (latents, model_output))
        if self.limit is None:
            return result
        limited = self.limit(result)
        return limited if self.from_x0 is None else weighted_sum(self.from_x0[i], (latents, limited))


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearSampler:
    """A sampler whose step is a weighted sum of the latents, a prediction, and those of the steps before.

    `moves[i][k]` is step i when k arrays of history are at hand; the last stands for more. `noising[i]` are the weights
    of x0 and noise in the latents. Tables are computed in float64; a step is computed in the latents' own dtype.
    """

    timesteps: F32
    sigmas: F64
    init_noise_sigma: float
    noising: Pairs
    prediction: Prediction
    moves: tuple[tuple[Move, ...], ...]
    input_scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        self.timesteps.setflags(write=False)
        self.sigmas.setflags(write=False)

    def draws_noise(self, i: int) -> bool:
        """See `Scheduler`."""
        return any(move.noise is not None for move in self.moves[i])

    def scale_model_input(self, latents: F32, i: int) -> F32:
        """See `Scheduler`."""
        return latents if self.input_scale is None else latents * self.input_scale[i]

    def add_noise(self, x0: F32, noise: F32, i: int) -> F32:
        """See `Scheduler`."""
        return weighted_sum(self.noising[i], (x0, noise))

    def x0(self, model_output: F32, i: int, latents: F32) -> F32:
        """See `Scheduler`. What the network says of a variance comes after the latents' own channels."""
        return self.prediction.x0(model_output[:, : latents.shape[1]], i, latents)

    def step(
        self, model_output: F32, i: int, latents: F32, history: tuple[F32, ...], noise: F32 | None
    ) -> tuple[F32, tuple[F32, ...]]:
        """See `Scheduler`.

        Raises:
            UsageError: there is no noise, or the step is in the middle of something, and the history is not that of the
                step before.
        """
        moves = self.moves[i]
        move = moves[min(len(history), len(moves) - 1)]
        columns = (latents, self.prediction(model_output, i, latents), *history)
        if len(columns) < len(move.weights):
            raise UsageError(f"call {i} goes on from the call before it and needs its history; start at an earlier one")
        if move.corrector is not None:
            columns = (weighted_sum(move.corrector, columns), *columns[1:])
        result = weighted_sum(move.weights, columns)
        if move.noise is not None:
            if noise is None:
                raise UsageError(
                    f"call {i} draws noise; wanted standard normal noise of shape {latents.shape}, got None"
                )
            result += move.noise * noise
            columns = (*columns, noise)
        return result, tuple(columns[k] for k in move.keep)


def weighted_sum(weights: Sequence[float], columns: Sequence[F32]) -> F32:
    """A new array: the sum of the columns, those of weight 0 left out. There may be more columns than weights."""
    # Every pass over a column costs 3 us of a 1 x 4 x 64 x 64 picture, so a weight of 1 is not multiplied by.
    result: F32 | None = None
    term: F32 | None = None
    whole = []
    for weight, column in zip(weights, columns, strict=False):
        if weight == 1:
            whole.append(column)
        elif weight == 0:
            continue
        elif result is None:
            result = weight * column
        else:
            term = np.multiply(weight, column, out=term)
            result += term
    if result is None:
        result = np.array(whole.pop()) if whole else np.zeros_like(columns[0])
    for column in whole:
        result += column
    return result


def x0_table(config: SchedulerConfig, alphas: F64, sigmas: F64) -> Pairs:
    """Weights of the latents and of the network's output in x0, for latents = alphas[i] * x0 + sigmas[i] * noise.

    Raises:
        UsageError: the prediction type is unknown, or says nothing of x0 where there is noise alone.
    """
    table = unchecked_x0_table(config, alphas, sigmas)
    if not np.isfinite(table).all():
        raise UsageError(
            f"scheduler config: prediction_type {config.prediction_type!r} cannot start from zero SNR; "
            "use timestep_spacing 'leading', or a model trained for 'v_prediction'"
        )
    return table


def unchecked_x0_table(config: SchedulerConfig, alphas: F64, sigmas: F64) -> Pairs:
    """`x0_table` for samplers that can do without: infinite where the prediction says nothing of x0."""
    convert = pick("prediction_type", config.prediction_type, PREDICTION_TYPES)
    sigmas = predicted_sigmas(config, alphas, sigmas)
    trained_scale = np.ones_like(alphas) if config.use_flow_sigmas else np.hypot(alphas, sigmas)
    with np.errstate(divide="ignore"):
        return pairs(*convert(alphas, sigmas, trained_scale))


def predicted_sigmas(config: SchedulerConfig, alphas: F64, sigmas: F64) -> F64:
    """The sigmas of the prediction: of a flow's, where there is none, diffusers takes noise over signal."""
    own = config.use_flow_sigmas or config.prediction_type != "flow_prediction"
    return sigmas if own else sigmas / alphas


def first_order_weights(alphas: F64, sigmas: F64, next_alphas: F64, next_sigmas: F64) -> tuple[F64, F64]:
    """Weights of the latents and of x0 in the step that keeps the noise direction. Shapes (calls,).

    With alpha^2 + sigma^2 = 1 this is DDIM (arXiv:2010.02502 eq. 12, sigma_t = 0) and first-order DPM-Solver++
    (arXiv:2211.01095 eq. 9); with alpha = 1 it is Euler's method on the probability flow (arXiv:2206.00364 alg. 1).
    """
    of_latents = next_sigmas / sigmas
    return of_latents, next_alphas - of_latents * alphas


def pairs(of_latents: F64, of_other: F64) -> Pairs:
    """Columns of shape (calls,) as one pair of Python floats a call."""
    return tuple(zip(of_latents.tolist(), of_other.tolist(), strict=True))


def single_moves(of_latents: F64, of_prediction: F64) -> tuple[tuple[Move, ...], ...]:
    """The moves of a sampler that remembers nothing, from columns of shape (calls,)."""
    return tuple((Move(row),) for row in pairs(of_latents, of_prediction))
