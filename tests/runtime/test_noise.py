from __future__ import annotations

import numpy as np

from edgediffusion.runtime.noise import NumpyNoise


def test_each_picture_has_its_own_stream() -> None:
    batch, single = NumpyNoise(4, 3), [NumpyNoise(4 + k) for k in range(3)]
    for shape in ((4, 8, 8), (4, 2, 3)):
        noise = batch.normal(shape)
        assert noise.shape == (3, *shape)
        assert noise.dtype == np.float32
        np.testing.assert_array_equal(noise, np.concatenate([one.normal(shape) for one in single]))


def test_it_is_standard_normal() -> None:
    noise = NumpyNoise(0).normal((100_000,)).astype(np.float64)
    # Five standard errors of the mean and of the variance of 100 000 values.
    assert abs(noise.mean()) < 5 / np.sqrt(1e5)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / 1e5)


def test_the_stream_goes_on() -> None:
    noise = NumpyNoise(0)
    assert (noise.normal((4,)) != noise.normal((4,))).all()
