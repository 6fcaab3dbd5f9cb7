"""Networks that tell the variance of a step too, in as many channels again: Nichol, Dhariwal, arXiv:2102.09672."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgediffusion.engines.errors import UsageError

from ..arrays import F32
from .base import LinearSampler
from .config import SchedulerConfig

LEARNED = frozenset({"learned", "learned_range"})
# From what the network says, (batch, channels, height, width), and the call: the standard deviation of its noise.
Deviation = Callable[[F32, int], F32]


@dataclass(frozen=True, kw_only=True, eq=False)
class LearnedVariance(LinearSampler):
    """A sampler whose network answers a prediction and a variance, (batch, 2 * channels, height, width).

    Without a `deviation` the variance is left aside.
    """

    deviation: Deviation | None = None

    def step(
        self, model_output: F32, i: int, latents: F32, history: tuple[F32, ...], noise: F32 | None
    ) -> tuple[F32, tuple[F32, ...]]:
        """See `Scheduler`.

        Raises:
            UsageError: the network does not answer twice the channels of the latents; or as `LinearSampler`.
        """
        channels = latents.shape[1]
        if model_output.shape[1] != 2 * channels:
            raise UsageError(
                f"model_output of {model_output.shape[1]} channels; wanted {2 * channels}, a prediction and a learned "
                "variance; if the model tells none, remove variance_type from the scheduler config"
            )
        if noise is not None and self.deviation is not None:
            noise = noise * self.deviation(model_output[:, channels:], i)
        return super().step(model_output[:, :channels], i, latents, history, noise)


def without_variance(config: SchedulerConfig, sampler: LinearSampler) -> LinearSampler:
    """For a solver that has no use for a learned variance."""
    return LearnedVariance(**vars(sampler)) if config.variance_type in LEARNED else sampler
