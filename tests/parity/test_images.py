"""Pixels against diffusers' VaeImageProcessor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from edgediffusion.runtime import ImageConverted, ImageResized
from edgediffusion.runtime.images import fit, from_pil, to_pil


def test_every_rounding() -> None:
    # Every half between two pixel values, its float32 neighbours, what is beyond the ends, and values at random.
    halves = ((np.arange(-2, 258) + 0.5) / 127.5 - 1).astype(np.float32)
    values = np.concatenate([halves, np.nextafter(halves, np.float32(9)), np.nextafter(halves, np.float32(-9))])
    values = np.concatenate(
        [values, np.random.default_rng(0).normal(0, 0.7, 6 * 1024 - len(values)).astype(np.float32)]
    )
    sample = values.reshape(2, 3, 32, 32)
    theirs = VaeImageProcessor().postprocess(torch.from_numpy(sample), output_type="pil")
    for ours, reference in zip(to_pil(sample), theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(reference))


@pytest.mark.filterwarnings("ignore::edgediffusion.runtime.ImageResized")
@pytest.mark.filterwarnings("ignore::edgediffusion.runtime.ImageConverted")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
@pytest.mark.parametrize(("width", "height"), [(56, 40), (24, 64), (16, 8)])
def test_a_picture_to_start_from(mode: str, width: int, height: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    ours = from_pil(fit(image, width, height))
    assert ours.dtype == np.float32
    # diffusers takes other modes for what they are not, so it is given what they show.
    theirs = VaeImageProcessor().preprocess(image.convert("RGB"), height=height, width=width)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_a_converted_picture_is_told() -> None:
    with pytest.warns(ImageResized, match="image resized from 8x16 to 24x8"):
        assert fit(Image.new("RGB", (8, 16)), 24, 8).size == (24, 8)
    with pytest.warns(ImageConverted, match="mask converted from RGBA to L"):
        assert fit(Image.new("RGBA", (8, 16)), 8, 16, name="mask", mode="L").mode == "L"
