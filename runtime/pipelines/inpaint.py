"""Inpainting with a UNet made for it: behind the latents it is shown a mask, and the picture without what is masked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..images import from_pil, light
from ..noise import NoiseSource
from .base import Start, Task
from .image2image import begin_with, encode, first_call
from .text2image import begin as begin_with_noise

if TYPE_CHECKING:
    from ..run import Run


def begin(run: Run, noise: NoiseSource) -> Start:
    """Noise alone for a strength of 1, else the latents of the picture as well; and the further channels."""
    assert run.image is not None
    assert run.mask is not None
    sample, mask = from_pil(run.image), light(run.mask)
    start = begin_with(run, sample, noise) if run.strength < 1 else begin_with_noise(run, noise)
    masked_latents = encode(run, np.where(mask, np.float32(0), sample), noise)
    masks = run.pipeline.latent_space.corners(mask).repeat(run.num_images, axis=0)
    return Start(start.latents, np.concatenate([masks, masked_latents], axis=1, dtype=np.float32))


INPAINT = Task(takes=frozenset({"image", "mask"}), options=frozenset({"strength"}), first_call=first_call, begin=begin)
