"""Image to image: denoising begins in the middle, with the latents of a picture and as much noise as belongs there.

Meng et al., SDEdit, arXiv:2108.01073.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..arrays import F32
from ..images import from_pil
from ..noise import NoiseSource
from ..schedulers import start_call
from .base import ENLARGED, REFINED, Start, Task

if TYPE_CHECKING:
    from ..run import Run


def first_call(run: Run) -> int:
    """What `strength` leaves out."""
    return start_call(run.scheduler, run.num_inference_steps, run.strength)


def encode(run: Run, sample: F32, noise: NoiseSource) -> F32:
    """Latents (num_images, channels, height / 8, width / 8), as the UNet has them, of pictures (n, 3, height, width).

    n is num_images, or 1 for all. Each picture of the run has its own sample of what the encoder says.
    """
    space = run.pipeline.latent_space
    encoded = run.pipeline.encode(sample, tiling=run.vae_tiling).repeat(run.num_images // len(sample), axis=0)
    drawn = draw_for_encoder(run, noise)
    return space.for_unet(encoded) if drawn is None else space.from_encoder(encoded, drawn)


def draw_for_encoder(run: Run, noise: NoiseSource) -> F32 | None:
    """The noise of a sample of what the VAE encoder says; AutoencoderTiny says one thing only."""
    (output,) = run.pipeline.bundle.manifest.graphs["vae_encoder"].spec.outputs
    if output.name != "latent_parameters":
        return None
    return noise.normal(run.pipeline.latent_space.shape(run.width, run.height))


def begin_with(run: Run, sample: F32, noise: NoiseSource) -> Start:
    """The latents of a picture, with the noise of the run's first call."""
    image_latents = encode(run, sample, noise)
    latents = run.tables.add_noise(image_latents, noise.normal(image_latents.shape[1:]), run.first_call)
    return Start(latents.astype(np.float32))


def begin(run: Run, noise: NoiseSource) -> Start:
    """With the run's `image`."""
    assert run.image is not None
    return begin_with(run, from_pil(run.image), noise)


IMAGE2IMAGE = Task(
    takes=frozenset({"image"}),
    options=frozenset({"strength"}) | ENLARGED | REFINED,
    first_call=first_call,
    begin=begin,
)
