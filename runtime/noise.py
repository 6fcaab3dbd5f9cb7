"""Where noise comes from: an argument of every run, never a global."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from .arrays import F32, F64
from .noise_brownian import TorchSdeNoise
from .noise_torch import TorchCpuNoise, TorchCudaNoise


class NoiseSource(Protocol):
    """Standard normal noise for the pictures of one run."""

    def normal(self, shape: tuple[int, ...]) -> F32:
        """The next noise, (num_images, *shape); each picture has a stream of its own."""
        ...


class NumpyNoise:
    """NumPy's generator (PCG64). Picture k has the stream of seed + k, so a batch equals its pictures one by one."""

    def __init__(self, seed: int, num_images: int = 1) -> None:
        self._streams = [np.random.default_rng(seed + k) for k in range(num_images)]

    def normal(self, shape: tuple[int, ...]) -> F32:
        """See `NoiseSource`."""
        return np.stack([stream.standard_normal(shape, np.float32) for stream in self._streams])


# Name -> maker(seed, num_images).
NOISES: dict[str, Callable[[int, int], NoiseSource]] = {
    "numpy": NumpyNoise,
    "torch-cpu": TorchCpuNoise,
    "torch-cuda": TorchCudaNoise,
}

# Of those whose generator has a Brownian motion of its own, maker(seed, num_images, sigmas, first_call): for a sampler
# that follows one. Independent noise makes one too, but another.
BROWNIAN: dict[str, Callable[[int, int, F64, int], NoiseSource]] = {"torch-cpu": TorchSdeNoise}
