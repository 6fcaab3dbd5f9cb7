"""Going on with what another model has begun, at a fraction of the noise: SDXL's refiner, arXiv:2307.01952, 2.5."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..noise import NoiseSource
from ..schedulers import find_sampler
from .base import Start, Task

if TYPE_CHECKING:
    from ..run import Run


def call_at(run: Run, fraction: float) -> int:
    """The first call whose timestep is below what is left of the training's after `fraction` of them."""
    count = run.pipeline.scheduler_config.get("num_train_timesteps", 1000)
    return int((run.tables.timesteps >= round(count - fraction * count)).sum())


def first_call(run: Run) -> int:
    """Where `denoising_start` is, not in the middle of a step of two calls."""
    assert run.denoising_start is not None
    call = call_at(run, run.denoising_start)
    calls_per_step = find_sampler(run.scheduler).calls_per_step
    # Every timestep but the first is there twice.
    return call - (len(run.tables.timesteps) - call + 1) % 2 if calls_per_step == 2 else call


def begin(run: Run, noise: NoiseSource) -> Start:
    """The run's `latents`, as the model before left them."""
    assert run.latents is not None
    return Start(run.latents.astype(np.float32))


HANDOVER = Task(
    takes=frozenset({"denoising_start"}),
    options=frozenset({"denoising_end"}),
    first_call=first_call,
    begin=begin,
)
