"""The second pass of two-pass upscaling ("hires fix"): what was drawn small is enlarged and, in part, drawn again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..arrays import F32
from ..images import from_pil
from ..noise import NoiseSource
from .base import Start, Task
from .image2image import encode, first_call

if TYPE_CHECKING:
    from ..run import Run


def begin(run: Run, noise: NoiseSource) -> Start:
    """The latents of the first pass, enlarged to the run's size, with the noise of its first call."""
    assert run.latents is not None
    assert run.hires_upscaler is not None
    latents = UPSCALERS[run.hires_upscaler](run, run.latents, noise)
    latents = run.tables.add_noise(latents, noise.normal(latents.shape[1:]), run.first_call)
    return Start(latents.astype(np.float32))


def _latent(run: Run, latents: F32, noise: NoiseSource) -> F32:
    """Bilinear interpolation of each channel: quick, and blurred unless half of the steps or more are done again."""
    from PIL import Image

    _, height, width = run.pipeline.latent_space.shape(run.width, run.height)
    planes = latents.reshape(-1, *latents.shape[2:])
    enlarged = [Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane) for plane in enlarged]).reshape(*latents.shape[:2], height, width)


def _pixels(run: Run, latents: F32, noise: NoiseSource) -> F32:
    """The pictures, enlarged by Lanczos' filter and encoded again."""
    from PIL import Image

    size = run.width, run.height
    pictures = [
        picture.resize(size, Image.Resampling.LANCZOS)
        for picture in run.pipeline.decode(latents, tiling=run.vae_tiling)
    ]
    return encode(run, np.concatenate([from_pil(picture) for picture in pictures]), noise)


# Name -> maker of the run's latents from those of the first pass.
UPSCALERS: dict[str, Callable[[Run, F32, NoiseSource], F32]] = {"latent": _latent, "pixels": _pixels}

HIRES = Task(first_call=first_call, begin=begin, enlarges=True)
