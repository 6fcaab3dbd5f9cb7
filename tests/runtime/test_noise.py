from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediffusion.runtime.arrays import F32
from edgediffusion.runtime.noise import NOISES
from edgediffusion.runtime.noise_brownian import BrownianTree
from edgediffusion.runtime.noise_torch import TorchCpuNoise, TorchCudaNoise, philox

# What torch drew on a GPU: written there by bench/scripts/record_cuda_noise.py.
GOLDEN = Path(__file__).parents[1] / "golden" / "torch_cuda_noise.json"


@pytest.mark.parametrize("name", NOISES)
def test_each_picture_has_its_own_stream(name: str) -> None:
    batch, single = NOISES[name](4, 3), [NOISES[name](4 + k, 1) for k in range(3)]
    for shape in ((4, 8, 8), (4, 2, 3)):
        noise = batch.normal(shape)
        assert noise.shape == (3, *shape)
        assert noise.dtype == np.float32
        np.testing.assert_array_equal(noise, np.concatenate([one.normal(shape) for one in single]))


@pytest.mark.parametrize("name", NOISES)
def test_it_is_standard_normal(name: str) -> None:
    noise = NOISES[name](0, 1).normal((100_000,)).astype(np.float64)
    # Five standard errors of the mean and of the variance of 100 000 values.
    assert abs(noise.mean()) < 5 / np.sqrt(1e5)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / 1e5)


@pytest.mark.parametrize("name", NOISES)
def test_the_stream_goes_on(name: str) -> None:
    noise = NOISES[name](0, 1)
    assert (noise.normal((4,)) != noise.normal((4,))).all()


# torch 2.13: g = torch.Generator("cpu").manual_seed(5); torch.randn(3, generator=g); torch.randn(17, generator=g)
FEW = (-0.4867808, -0.6038216, -0.5580962)
MANY = (
    0.2582516,
    -0.434023,
    0.3523355,
    -0.06455148,
    0.7686294,
    0.9233472,
    -0.558323,
    0.7796258,
    -0.2616684,
    0.03165689,
    -1.172414,
    -1.50694,
    -0.1481046,
    0.3714547,
    0.2272514,
    -0.06473517,
    -0.1478936,
)


def test_torch_cpu() -> None:
    noise = TorchCpuNoise(5)
    np.testing.assert_allclose(noise.normal((3,))[0], FEW, rtol=0, atol=1e-6)
    np.testing.assert_allclose(noise.normal((17,))[0], MANY, rtol=0, atol=1e-6)


# Printed by a GPU after torch.manual_seed(0): x = torch.randn(8, 10, device="cuda"), then 10 values, then 8 x 10
# (notes to CUDA mode lecture 4, torch 2.2). Four digits behind the point are all that it prints.
CUDA_SEED_0 = """
-0.9247 -0.4253 -2.6438  0.1452 -0.1209 -0.5797 -0.6229 -0.3284 -1.0745 -0.3631
-1.6711  2.2655  0.3117 -0.1842  1.2866  1.1820 -0.1271  1.2169  1.4353  1.0605
-0.4941 -1.4244 -0.7244 -1.2973  0.0697 -0.0074  1.8969  0.6878 -0.0779 -0.8373
 1.3506 -0.2879 -0.5965 -0.3283 -0.9086 -0.8059 -0.7407 -0.0504  0.5435  1.5150
 0.0141  0.4532  1.6349  0.7124 -0.1806  1.0252 -1.4622 -0.7554 -0.1836  0.3824
 0.3918 -0.0830  0.8971 -1.1123  0.1116  0.4863 -0.5499 -0.3231 -0.5469  0.9049
 0.2837  0.1210  0.4730 -1.0823 -0.0334 -0.9734  0.9559 -1.1795 -1.0064  0.1160
 0.6852 -0.4124 -0.6738 -0.5404  0.6898 -1.5517  0.3805 -0.0436  0.3597 -0.5043
"""
CUDA_SEED_0_THEN_10 = "0.1808 -0.5523 0.9238 -0.7350 1.3800 0.8676 0.1297 -0.9406 0.8109 0.8821"
CUDA_SEED_0_THEN_80 = "2.5441 -0.7163 -0.4934 0.1267 0.1014 -0.4035 0.9023 0.8099 -0.6884 0.1372"
# Six tensors of 4 values, one after the other, after torch.manual_seed(42), printed by a GPU.
CUDA_SEED_42 = (
    "0.1940 2.1614 -0.1721 0.8491",
    "0.1391 -0.1082 -0.7174 0.7566",
    "-0.5187 1.2268 0.6255 -0.9117",
    "-0.6974 -1.8688 -0.8832 -1.6627",
    "-1.2682 -0.0383 -0.1029 1.4400",
    "1.4640 -0.3238 0.7740 1.5892",
)


def printed(text: str) -> F32:
    return np.array(text.split(), np.float32)


def test_torch_cuda_is_what_a_gpu_printed() -> None:
    noise = TorchCudaNoise(0)
    for text, n in ((CUDA_SEED_0, 80), (CUDA_SEED_0_THEN_10, 10), (CUDA_SEED_0_THEN_80, 80)):
        expected = printed(text)
        np.testing.assert_allclose(noise.normal((n,))[0, : len(expected)], expected, rtol=0, atol=5.1e-5)
    noise = TorchCudaNoise(42)
    for text in CUDA_SEED_42:
        np.testing.assert_allclose(noise.normal((4,))[0], printed(text), rtol=0, atol=5.1e-5)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        # The known answers of Random123 for philox4x32-10.
        (0, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (2**64 - 1, 2**64 - 1), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0_A4093822,
            (0x85A308D3_243F6A88, 0x03707344_13198A2E),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox(key: int, counter: tuple[int, int], expected: tuple[int, ...]) -> None:
    low, high = (np.array([half], np.uint64) for half in counter)
    assert philox(key, low, high)[:, 0].tolist() == list(expected)


def test_a_grid_that_is_too_small_goes_round() -> None:
    """Thread t makes values t, t + 512, t + 1024, t + 1536 from one block of Philox, t + 2048, ... from the next."""
    n = 5000
    noise = TorchCudaNoise(3, multiprocessors=2, threads_per_multiprocessor=256)
    first = noise.normal((n,))[0]
    for i in (0, 511, 512, 1700, 2047, 2048, 4999):
        thread, turn = i % 512, i // 512
        words = philox(3, np.array([turn // 4], np.uint64), np.array([thread], np.uint64))[:, 0]
        pair = words[:2] if turn % 4 < 2 else words[2:]
        radius, angle = np.sqrt(-2 * np.log((pair[0] + 0.5) / 2**32)), (pair[1] + 0.5) / 2**32 * 2 * np.pi
        assert first[i] == pytest.approx(radius * (np.cos(angle) if turn % 2 else np.sin(angle)), abs=2e-6)
    # Three blocks were taken from every thread, so the next tensor begins with the fourth.
    words = philox(3, np.array([3], np.uint64), np.array([0], np.uint64))[:, 0]
    radius, angle = np.sqrt(-2 * np.log((words[0] + 0.5) / 2**32)), (words[1] + 0.5) / 2**32 * 2 * np.pi
    assert noise.normal((1,))[0, 0] == pytest.approx(radius * np.sin(angle), abs=2e-6)
    small, large = (TorchCudaNoise(3, multiprocessors=m).normal((4, 64, 64)) for m in (40, 132))
    np.testing.assert_array_equal(small, large)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN.name} was not recorded")
    return dict(json.loads(GOLDEN.read_text(encoding="utf-8")))


def test_cuda_integers_are_those_of_a_gpu_bit_for_bit(recorded: dict[str, Any]) -> None:
    for record in recorded["seeds"]:
        theirs = np.frombuffer(base64.b64decode(record["int64"]), np.uint64)
        # A thread for each value, made of the first two of the four words, the high half first.
        words = philox(record["seed"], np.zeros(1, np.uint64), np.arange(len(theirs), dtype=np.uint64))
        ours = words[0].astype(np.uint64) << np.uint64(32) | words[1]
        np.testing.assert_array_equal(ours, theirs, f"seed {record['seed']}")


def test_cuda_normals_are_those_of_a_gpu_draw_after_draw(recorded: dict[str, Any]) -> None:
    for record in recorded["seeds"]:
        noise = TorchCudaNoise(
            record["seed"],
            multiprocessors=recorded["multiprocessors"],
            threads_per_multiprocessor=recorded["threads_per_multiprocessor"],
        )
        for draw in record["draws"]:
            theirs = np.frombuffer(base64.b64decode(draw["float32"]), np.float32)
            ours = noise.normal(tuple(draw["shape"])).reshape(-1)[draw["positions"]]
            # cuRAND takes the GPU's fast sine and cosine, which are off by up to 2^-21, times a radius of up to 6.7:
            # 2.5e-6 is the largest difference that was seen over 5.8 million values.
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6, err_msg=f"{record['seed']}, {draw['shape']}")


def test_a_brownian_motion_is_one_whatever_was_asked() -> None:
    tree = BrownianTree(3, 0.03, 14.6, (2, 3))
    values = [tree(time) for time in (0.03, 1.0, 7.25, 14.6)]
    np.testing.assert_array_equal(values[0], np.zeros((2, 3)))
    for time, value in zip((0.03, 1.0, 7.25, 14.6), values, strict=True):
        np.testing.assert_array_equal(BrownianTree(3, 0.03, 14.6, (2, 3))(time), value)
    many = BrownianTree(5, 0.0, 4.0, (20_000,))
    for low, high in ((0.0, 1.0), (1.0, 1.5), (3.999, 4.0)):
        # Five standard errors of the variance of 20 000 values.
        variance = float(np.var(many(high) - many(low))) / (high - low)
        assert abs(variance - 1) < 5 * np.sqrt(2 / 20_000)
