"""Latents: their shape, and their scale between UNet and VAE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.typed import check_types

from .arrays import F32

_SCALING_FACTORS = {"AutoencoderTiny": 1.0}  # where the config doesn't say


@dataclass(frozen=True, kw_only=True)
class LatentSpace:
    """How latents and pixels relate. `width` and `height` are the model's own size, in pixels."""

    channels: int
    pixels_per_latent: int
    scaling_factor: float
    shift_factor: float
    width: int
    height: int

    @classmethod
    def from_configs(cls, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> LatentSpace:
        """From the `config.json` of a UNet2DConditionModel, and of an AutoencoderKL or AutoencoderTiny.

        Raises:
            BundleError: they lack a setting, or it cannot be.
        """
        try:
            blocks = vae["decoder_block_out_channels" if "decoder_block_out_channels" in vae else "block_out_channels"]
            pixels_per_latent = 2 ** (len(blocks) - 1)
            size = unet["sample_size"]
            height, width = (size, size) if isinstance(size, int) else size
            shift_factor = vae.get("shift_factor")
            space = cls(
                channels=vae.get("latent_channels", 4),
                pixels_per_latent=pixels_per_latent,
                scaling_factor=vae.get("scaling_factor", _SCALING_FACTORS.get(vae.get("_class_name", ""), 0.18215)),
                shift_factor=0.0 if shift_factor is None else shift_factor,
                width=width * pixels_per_latent,
                height=height * pixels_per_latent,
            )
            check_types(space, "latents")
            if min(space.channels, space.width, space.height) < 1:
                raise ValueError(f"{space.channels} channels, {space.width}x{space.height} pixels")
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(
                f"the config.json of the UNet, or of the VAE: {error!r}; copy or export the bundle again"
            ) from None
        return space

    def shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Shape of one picture's latents, (channels, height, width), for a size in pixels."""
        return self.channels, height // self.pixels_per_latent, width // self.pixels_per_latent

    def whole(self, width: int, height: int) -> tuple[int, int]:
        """A size in pixels, rounded down to one that latents can have."""
        return width - width % self.pixels_per_latent, height - height % self.pixels_per_latent

    def corners(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Of each latent the pixel in its corner: (..., height, width) -> (..., height / 8, width / 8)."""
        return pixels[..., :: self.pixels_per_latent, :: self.pixels_per_latent]

    def from_encoder(self, parameters: F32, noise: F32) -> F32:
        """The UNet's latents, drawn from what the VAE encoder says: means, then logarithms of variances.

        Shapes (batch, 2 * channels, height, width) and (batch, channels, height, width); the noise is standard normal.
        Kingma, Welling, arXiv:1312.6114, sec. 2.4.
        """
        mean, log_variance = np.split(parameters, 2, axis=1)
        std = np.exp(0.5 * np.clip(log_variance, -30, 20))
        return self.for_unet(mean + std * noise)

    def for_unet(self, latents: F32) -> F32:
        """The VAE encoder's latents as the UNet has them."""
        return (latents - self.shift_factor) * self.scaling_factor

    def for_decoder(self, latents: F32) -> F32:
        """The UNet's latents as the VAE decoder takes them."""
        return latents / self.scaling_factor + self.shift_factor
