from __future__ import annotations

import numpy as np

from edgediffusion.runtime.images import to_pil, to_uint8


def test_range_and_layout() -> None:
    sample = np.zeros((2, 3, 4, 5), np.float32)
    sample[0, 0] = 1
    sample[1, 2] = -1
    pixels = to_uint8(sample)
    assert pixels.shape == (2, 4, 5, 3)
    np.testing.assert_array_equal(pixels[0, 0, 0], [255, 128, 128])  # 127.5 rounds to even
    np.testing.assert_array_equal(pixels[1, 3, 4], [128, 128, 0])


def test_values_outside_are_clipped() -> None:
    sample = np.array([-9, -1, 1, 9], np.float32).reshape(1, 1, 2, 2).repeat(3, axis=1)
    np.testing.assert_array_equal(to_uint8(sample)[0, ..., 0], [[0, 0], [255, 255]])


def test_pil_keeps_rows_and_channels() -> None:
    sample = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4, 5)).astype(np.float32)
    for picture, pixels in zip(to_pil(sample), to_uint8(sample), strict=True):
        assert (picture.mode, picture.size) == ("RGB", (5, 4))
        np.testing.assert_array_equal(np.asarray(picture), pixels)
