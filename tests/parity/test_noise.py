"""torch's CPU generator against torch itself. The last bits of log, cos and sin are each library's own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from edgediffusion.runtime.noise_brownian import TorchSdeNoise
from edgediffusion.runtime.noise_torch import CpuStream, TorchCpuNoise

SEEDS = (0, 1, 5, 2**31, 2**32 - 1, 2**32, 2**40 + 7, 2**63 + 5, 2**64 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_integers_bit_for_bit(seed: int) -> None:
    # Integers of 64 bits are two of the 32 that mt19937 makes, the high half first.
    theirs = torch.empty(5000, dtype=torch.int64).random_(-(2**63), None, generator=generator(seed))
    ours = CpuStream(seed).integers(10_000).reshape(-1, 2)
    np.testing.assert_array_equal(ours[:, 0] << np.uint64(32) | ours[:, 1], theirs.numpy().view(np.uint64))


@pytest.mark.parametrize("seed", SEEDS)
def test_normals_of_every_layout_in_one_sequence(seed: int) -> None:
    """One generator, tensor after tensor: fewer than 16 values, an odd number of them, tails."""
    torch_generator, noise = generator(seed), TorchCpuNoise(seed)
    for n in (1, 3, 15, 16, 7, 17, 31, 32, 4, 1024, 2, 1000, 5):
        theirs = torch.randn(n, generator=torch_generator).numpy()
        np.testing.assert_allclose(noise.normal((n,))[0], theirs, rtol=0, atol=1e-6)


def test_a_million_normals() -> None:
    theirs = torch.randn(1_000_000, generator=generator(5)).numpy().astype(np.float64)
    difference = np.abs(TorchCpuNoise(5).normal((1_000_000,))[0] - theirs)
    # 4.8e-7 on a CPU with AVX2, where 38 of 100 values differ in their last bits: torch's sine and cosine are float32.
    assert difference.max() < 1e-6


def test_pictures_are_the_tensors_of_a_list_of_generators() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    generators, noise = [generator(3 + k) for k in range(3)], TorchCpuNoise(3, 3)
    for shape in ((4, 8, 8), (4, 5, 3)):
        theirs = randn_tensor((3, *shape), generator=generators, dtype=torch.float32).numpy()
        np.testing.assert_allclose(noise.normal(shape), theirs, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # the highest level, rounded to float32
def test_the_brownian_tree_is_that_of_torchsde() -> None:
    pytest.importorskip("torchsde")
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    levels = np.array([14.614642, 6.5, 2.0, 1.9999, 0.3, 0.0291675])
    least, most = (float(np.float32(level)) for level in (levels[-1], levels[0]))
    theirs: Any = BrownianTreeNoiseSampler(torch.zeros(2, 4, 5, 3), least, most, [7, 8])
    ours = TorchSdeNoise(7, 2, levels, 0)
    for high, low in itertools.pairwise(torch.from_numpy(levels.astype(np.float32))):
        # Theirs is the sum of increments in float32, divided by a root as small as 0.01.
        np.testing.assert_allclose(ours.normal((4, 5, 3)), theirs(high, low).numpy(), rtol=0, atol=1e-4)
    later = TorchSdeNoise(8, 1, levels, 4).normal((4, 5, 3))
    np.testing.assert_allclose(later[0], theirs(*levels[4:6])[1].numpy(), rtol=0, atol=1e-4)
