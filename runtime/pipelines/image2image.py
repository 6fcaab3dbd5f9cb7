"""Image to image: denoising begins in the middle, with the latents of a picture and as much noise as belongs there.

Meng et al., SDEdit, arXiv:2108.01073.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..arrays import F32
from ..images import from_pil
from ..noise import NoiseSource
from .base import Start, Task

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..pipeline import Pipeline
    from ..run import Run


def encode(pipeline: Pipeline, image: Image, width: int, height: int, noise: NoiseSource) -> F32:
    """Latents of a picture, one sample of their distribution for each picture of the run, whose noise it draws.

    Shape (num_images, channels, height / 8, width / 8), scaled for the UNet.

    Warns:
        ImageResized: the picture has another size.
    """
    space = pipeline.latent_space
    feeds = {"sample": from_pil(image, width, height)}
    parameters = pipeline.bundle.engine("vae_encoder")(feeds)["latent_parameters"]
    return space.from_encoder(parameters, noise.normal(space.shape(width, height)))


def begin(run: Run, noise: NoiseSource) -> Start:
    """The latents of the run's `image`, with the noise of the run's first call."""
    assert run.image is not None
    image_latents = encode(run.pipeline, run.image, run.width, run.height, noise)
    latents = run.tables.add_noise(image_latents, noise.normal(image_latents.shape[1:]), run.first_call)
    return Start(latents.astype(np.float32), run.first_call)


IMAGE2IMAGE = Task(takes=frozenset({"image"}), begin=begin)
