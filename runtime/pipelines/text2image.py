"""Text to image: denoising begins with noise alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..noise import NoiseSource
from .base import ENLARGED, REFINED, Start, Task

if TYPE_CHECKING:
    from ..run import Run


def begin(run: Run, noise: NoiseSource) -> Start:
    """The run's `latents`, or the noise of its seed."""
    latents = run.latents
    if latents is None:
        latents = noise.normal(run.pipeline.latent_space.shape(run.width, run.height))
    return Start(latents.astype(np.float32) * run.tables.init_noise_sigma)


TEXT2IMAGE = Task(begin=begin, options=ENLARGED | REFINED)
