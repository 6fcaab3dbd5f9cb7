from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgediffusion.engines.errors import BundleError
from edgediffusion.runtime.latents import LatentSpace

UNET = {"sample_size": 64, "in_channels": 4}
VAE = {"block_out_channels": [128, 256, 512, 512], "scaling_factor": 0.18215}


def test_shape() -> None:
    space = LatentSpace.from_configs(UNET, VAE)
    assert (space.width, space.height) == (512, 512)
    assert space.shape(768, 512) == (4, 64, 96)


@pytest.mark.parametrize(
    ("unet", "vae", "message"),
    [
        ({}, VAE, r"KeyError\('sample_size'\)"),
        ({"sample_size": [64]}, VAE, "ValueError"),
        ({"sample_size": 0}, VAE, "4 channels, 0x0 pixels"),
        (UNET, {"block_out_channels": 3}, "TypeError"),
        (UNET, VAE | {"latent_channels": 4.5}, "latents.channels is 4.5"),
    ],
)
def test_configs_that_cannot_be(unet: dict[str, Any], vae: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=f"the config.json of the UNet, or of the VAE: .*{message}.*; copy or export"):
        LatentSpace.from_configs(unet, vae)


def test_an_oblong_model() -> None:
    space = LatentSpace.from_configs(UNET | {"sample_size": [32, 64]}, VAE | {"block_out_channels": [64, 64, 64]})
    assert (space.width, space.height) == (256, 128)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 2 / 0.18215), ({"scaling_factor": 0.5}, 4), ({"scaling_factor": 0.5, "shift_factor": 0.25}, 4.25)],
)
def test_scale_for_the_decoder(settings: dict[str, Any], expected: float) -> None:
    space = LatentSpace.from_configs(UNET, VAE | {"shift_factor": None} | settings)
    scaled = space.for_decoder(np.full((1, 4, 2, 2), 2, np.float32))
    assert scaled.dtype == np.float32
    assert scaled[0, 0, 0, 0] == pytest.approx(expected, rel=1e-6)


def test_an_autoencoder_tiny() -> None:
    tiny = {"_class_name": "AutoencoderTiny", "decoder_block_out_channels": [64, 64, 64, 64]}
    space = LatentSpace.from_configs(UNET, tiny)
    assert (space.pixels_per_latent, space.scaling_factor) == (8, 1.0)


def test_more_channels_of_the_unet_are_no_latents() -> None:
    assert LatentSpace.from_configs(UNET | {"in_channels": 9}, VAE).shape(8, 8) == (4, 1, 1)
