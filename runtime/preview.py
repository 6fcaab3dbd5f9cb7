"""Rough pictures of latents, at next to no cost beside a step: for whoever watches a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgediffusion.engines.errors import UsageError

from .arrays import F32
from .images import to_pil
from .manifest import LatentRGB

if TYPE_CHECKING:
    from PIL.Image import Image

    from .pipeline import Pipeline


def project(latents: F32, latent_rgb: LatentRGB) -> F32:
    """(n, channels, height, width) -> (n, 3, height, width) in about [-1, 1]; 0 where the latents are not finite."""
    weights, bias = (np.array(part, np.float32) for part in (latent_rgb.weights, latent_rgb.bias))
    colours: F32 = np.nan_to_num(np.einsum("nchw,cd->ndhw", latents, weights) + bias[:, None, None])
    return colours


def check_previews(pipeline: Pipeline) -> None:
    """Whether the model has what previews are made with.

    Raises:
        UsageError: it has not.
    """
    if pipeline.bundle.manifest.latent_rgb is None and not pipeline.has_tiny_vae:
        path = pipeline.bundle.path
        raise UsageError(
            f"{path}: no previews, since its manifest has no projection of latents to colours; add it with: "
            f"python -m edgediffusion.export.latent_rgb {path}"
        )


def preview(pipeline: Pipeline, latents: F32) -> list[Image]:
    """Rough pictures of latents (n, channels, height / 8, width / 8), next to a step at no cost.

    By the projection that the bundle's manifest has; by the VAE itself where that is an AutoencoderTiny.

    Raises:
        UsageError: there is no such projection.
    """
    from PIL.Image import Resampling

    check_previews(pipeline)
    latent_rgb = pipeline.bundle.manifest.latent_rgb
    if pipeline.has_tiny_vae or latent_rgb is None:
        return pipeline.decode(latents)
    scale = pipeline.latent_space.pixels_per_latent
    size = latents.shape[3] * scale, latents.shape[2] * scale
    return [picture.resize(size, Resampling.BICUBIC) for picture in to_pil(project(latents, latent_rgb))]
