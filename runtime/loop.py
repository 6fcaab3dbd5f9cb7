"""The denoising loop. Start reading here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from .arrays import F32
from .noise import NoiseSource
from .schedulers import Scheduler

# (scaled latents, timestep, index of the call) -> noise_pred; what conditions it, and how, is its own business.
# Shapes (batch, channels, height, width), (1,) and the first one again. See `denoiser.py`.
Predict = Callable[[F32, F32, int], F32]
# (latents after the call, its index) -> those to go on with: what a pipeline makes of them. Shapes as above.
AfterStep = Callable[[F32, int], F32]


@dataclass(frozen=True)
class Step:
    """Where a run stands after one call of the UNet: `latents` (batch, 4, height, width), float32.

    `history` is what the sampler remembers; with it, `denoise` goes on from here as if it had never stopped. `x0` is
    what the UNet takes for the latents without noise, as far as it sees; it is computed when it is called.
    """

    index: int
    timestep: float
    latents: F32
    history: tuple[F32, ...]
    x0: Callable[[], F32]


def denoise(
    predict: Predict,
    scheduler: Scheduler,
    latents: F32,
    noise: NoiseSource,
    *,
    start: int = 0,
    stop: int | None = None,
    history: tuple[F32, ...] = (),
    after_step: AfterStep = lambda latents, i: latents,
) -> Iterator[Step]:
    """Yield after each step; the caller shows progress, decodes previews, or stops.

    `latents` are noise times `scheduler.init_noise_sigma`, or those at call `start`. `stop` is the first call that is
    left out; None is after the last.
    """
    for i in range(start, len(scheduler.timesteps) if stop is None else stop):
        timestep = scheduler.timesteps[i : i + 1]
        noise_pred = predict(scheduler.scale_model_input(latents, i), timestep, i)
        x0 = partial(scheduler.x0, noise_pred, i, latents)
        fresh = noise.normal(latents.shape[1:]) if scheduler.draws_noise(i) else None
        latents, history = scheduler.step(noise_pred, i, latents, history, fresh)
        latents = after_step(latents, i)
        yield Step(i, float(timestep[0]), latents, history, x0)
