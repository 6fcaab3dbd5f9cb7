"""Inpainting with any UNet: after each step the latents outside the mask are those of the picture again.

Lugmayr et al., RePaint, arXiv:2201.09865, eq. 8, without its resampling; as diffusers does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..arrays import F32
from ..images import from_pil, light
from ..noise import NoiseSource
from .base import Start, Task
from .image2image import draw_for_encoder, encode, first_call

if TYPE_CHECKING:
    from ..run import Run


def begin(run: Run, noise: NoiseSource) -> Start:
    """Noise alone for a strength of 1, else the picture's latents as well; the same noise goes on what is kept."""
    assert run.image is not None
    assert run.mask is not None
    image_latents = encode(run, from_pil(run.image), noise)
    fresh = noise.normal(image_latents.shape[1:])
    draw_for_encoder(run, noise)  # as diffusers does, for latents of the masked picture that this way has no use for
    mask = run.pipeline.latent_space.corners(light(run.mask))
    tables, last = run.tables, len(run.tables.timesteps) - 1

    def keep(latents: F32, i: int) -> F32:
        kept = tables.add_noise(image_latents, fresh, i + 1) if i < last else image_latents
        return np.where(mask, latents, kept).astype(np.float32, copy=False)

    noisy = run.strength < 1
    latents = tables.add_noise(image_latents, fresh, run.first_call) if noisy else fresh * tables.init_noise_sigma
    return Start(latents.astype(np.float32), after_step=keep)


MASKED_LATENTS = Task(
    takes=frozenset({"image", "mask"}),
    options=frozenset({"strength"}),
    defaults={"strength": 1.0},
    first_call=first_call,
    begin=begin,
)
