"""The model that comes with the package, on a real backend."""

from __future__ import annotations

import numpy as np
import pytest

from edgediffusion.runtime import Pipeline


def test_a_batch_of_four_is_four_single_runs() -> None:
    """ONNX Runtime may add up in another order for another batch: a last bit of float32, so one level of a pixel.

    Where this was written (2 cores, AVX-512, ONNX Runtime 1.32) the pictures were the same to the bit.
    """
    with Pipeline.load(device="cpu") as pipeline:
        batch = pipeline("a red apple", "blue", seed=3, num_images=4, num_inference_steps=4)
        for k, picture in enumerate(batch):
            (single,) = pipeline("a red apple", "blue", seed=3 + k, num_inference_steps=4)
            assert picture.parameters == single.parameters
            pixels, alone = (np.asarray(image, np.int16) for image in (picture.image, single.image))
            assert np.abs(pixels - alone).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(136, 104), (64, 64), (192, 128)])
def test_any_multiple_of_eight(width: int, height: int) -> None:
    with Pipeline.load(device="cpu") as pipeline:
        (picture,) = pipeline("a red apple", seed=0, width=width, height=height, num_inference_steps=1)
        assert picture.image.size == (width, height)
