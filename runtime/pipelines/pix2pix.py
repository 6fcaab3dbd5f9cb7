"""Editing a picture by an instruction: InstructPix2Pix, Brooks et al., arXiv:2211.09800."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..guidance import instruct
from ..images import from_pil
from ..noise import NoiseSource
from .base import Start, Task
from .text2image import begin as begin_with_noise

if TYPE_CHECKING:
    from ..run import Run


def begin(run: Run, noise: NoiseSource) -> Start:
    """Noise; behind it the UNet is shown the picture's latents, the likeliest ones, without the scaling factor."""
    assert run.image is not None
    mode = run.pipeline.encode(from_pil(run.image), tiling=run.vae_tiling)[:, : run.pipeline.latent_space.channels]
    return Start(begin_with_noise(run, noise).latents, mode.repeat(run.num_images, axis=0))


PIX2PIX = Task(
    takes=frozenset({"image"}),
    options=frozenset({"image_guidance_scale"}),
    begin=begin,
    guidance=lambda run: instruct(run.guidance_scale, run.image_guidance_scale),
)
