"""torch's random numbers without torch: `torch.randn(..., dtype=torch.float32)` on the CPU and on a CUDA GPU.

The integers behind them are torch's bit for bit. A logarithm and a cosine make them normal, and these differ in their
last bits from one mathematical library to the next. Seen over millions of values: 4.8e-7 at most from torch on the CPU,
2.5e-6 from torch on a GPU, where cuRAND takes fast sines. Noise that is off by so much gives pictures that agree to
86 dB PSNR or better (built-in model, 20 steps, DDIM, Euler and DPM-Solver++ 2M, four seeds each).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .arrays import F32, F64

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
_TWO_PI = np.float32(2 * math.pi)


class TorchCpuNoise:
    """What `torch.Generator("cpu").manual_seed(seed + k)` gives picture k: mt19937, and the Box-Muller transform."""

    def __init__(self, seed: int, num_images: int = 1) -> None:
        self._streams = [CpuStream(seed + k) for k in range(num_images)]

    def normal(self, shape: tuple[int, ...]) -> F32:
        """See `NoiseSource`."""
        return np.stack([stream.randn(math.prod(shape)).reshape(shape) for stream in self._streams])


class TorchCudaNoise:
    """What `torch.Generator("cuda").manual_seed(seed + k)` gives picture k: Philox 4x32-10 as cuRAND lays it out.

    torch starts one thread a value, each with a stream of its own, but at most as many as the GPU can hold at once,
    `multiprocessors * threads_per_multiprocessor`; with more values than that the threads go round, and the noise is
    another on another GPU. 132 x 2048 (H100, H200) reach for 2080 x 2080 pixels in Stable Diffusion, 40 x 1024 (T4)
    for 809 x 809; the A100 has 108 x 2048, the RTX 3090 82 x 1536, the RTX 4090 128 x 1536.
    """

    def __init__(
        self,
        seed: int,
        num_images: int = 1,
        *,
        multiprocessors: int = 132,
        threads_per_multiprocessor: int = 2048,
    ) -> None:
        max_blocks = multiprocessors * (threads_per_multiprocessor // _BLOCK)
        self._streams = [_CudaStream(seed + k, max_blocks) for k in range(num_images)]

    def normal(self, shape: tuple[int, ...]) -> F32:
        """See `NoiseSource`."""
        return np.stack([stream.randn(math.prod(shape)).reshape(shape) for stream in self._streams])


class CpuStream:
    """One generator of torch's on the CPU."""

    def __init__(self, seed: int) -> None:
        # Knuth's initialisation (TAOCP vol. 2, 3rd ed., p. 106) from the low 32 bits: torch drops the others.
        key = [seed & 0xFFFFFFFF]
        for i in range(1, 624):
            key.append((1812433253 * (key[-1] ^ key[-1] >> 30) + i) & 0xFFFFFFFF)
        self._bits = np.random.MT19937()
        self._bits.state = {
            "bit_generator": "MT19937",
            "state": {"key": np.array(key, np.uint32), "pos": 624},
        }
        self._spare: list[float] = []

    def integers(self, n: int) -> U64:
        """The next `n` integers of 32 bits."""
        return self._bits.random_raw(n)

    def randn(self, n: int) -> F32:
        """The next tensor of `n` normals. torch has one algorithm for fewer than 16, and one for the others."""
        return self._few(n) if n < 16 else self._many(n)

    def _few(self, n: int) -> F32:
        # Pairs in float64; the second of a pair stays with the generator for the next call.
        values = self._spare
        while len(values) < n:
            high, low, high2, low2 = (int(word) for word in self.integers(4))
            angle, tail = (((a << 32 | b) & (1 << 53) - 1) * 2.0**-53 for a, b in ((high, low), (high2, low2)))
            radius = math.sqrt(-2 * math.log1p(-tail))
            values = [*values, radius * math.cos(2 * math.pi * angle), radius * math.sin(2 * math.pi * angle)]
        self._spare = values[n:]
        return np.array(values[:n], np.float32)

    def _many(self, n: int) -> F32:
        # Blocks of 16; an incomplete last block is drawn anew, over the end of the one before it.
        uniform = self._uniform(n)
        result = np.empty(n, np.float32)
        whole = n - n % 16
        result[:whole] = _blocks(uniform[:whole])
        if whole < n:
            result[-16:] = _blocks(self._uniform(16))
        return result

    def _uniform(self, n: int) -> F32:
        return (self.integers(n) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _blocks(uniform: F32) -> F32:
    """Of each 16 values, the first 8 are radii and the last 8 are angles: cosines first, then sines."""
    radii, angles = uniform.reshape(-1, 2, 8).swapaxes(0, 1)
    cosines, sines = _box_muller(1 - radii, _TWO_PI * angles)
    return np.stack([cosines, sines], axis=1).reshape(-1)


def _box_muller(uniform: F32, angle: F32) -> tuple[F32, F32]:
    """Two normals, by cosine and by sine, from a uniform number in (0, 1] and an angle, correctly rounded."""
    radius: F64 = np.sqrt(-2 * np.log(uniform, dtype=np.float64))
    cosine, sine = np.cos(angle, dtype=np.float64), np.sin(angle, dtype=np.float64)
    return (radius * cosine).astype(np.float32), (radius * sine).astype(np.float32)


_BLOCK = 256  # threads of a block in torch's random kernels
_UNROLL = 4  # values that a thread makes at once, each a whole grid after the last


class _CudaStream:
    def __init__(self, seed: int, max_blocks: int) -> None:
        self._seed = seed & 0xFFFFFFFFFFFFFFFF
        self._max_blocks = max_blocks
        self._offset = 0

    def randn(self, n: int) -> F32:
        """The next tensor of `n` normals."""
        threads = _BLOCK * min(self._max_blocks, -(-n // _BLOCK))
        rounds = -(-n // (threads * _UNROLL))
        counters = np.arange(self._offset, self._offset + rounds, dtype=np.uint64)
        self._offset += rounds
        words = philox(self._seed, counters[:, None], np.arange(threads, dtype=np.uint64))
        return _normals(words).swapaxes(0, 1).reshape(-1)[:n]


def philox(seed: int, counter: U64, subsequence: U64) -> U32:
    """Philox 4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011) as cuRAND calls it.

    `counter` and `subsequence`, 64 bits each and broadcast together, make the 128-bit counter; the seed is the key.
    The result has a leading axis of 4.
    """
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    c0, c1, c2, c3 = np.broadcast_arrays(counter & low, counter >> half, subsequence & low, subsequence >> half)
    key0, key1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        product0, product2 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0 = (product2 >> half) ^ c1 ^ np.uint64(key0)
        c2 = (product0 >> half) ^ c3 ^ np.uint64(key1)
        c1, c3 = product2 & low, product0 & low
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3]).astype(np.uint32)


def _normals(words: U32) -> F32:
    """cuRAND's `curand_normal4`: words 0 and 1 give a sine and a cosine, as do 2 and 3. Shapes (4, ...)."""
    # One rounding for multiplication and addition together, as the GPU does it.
    reals = words.astype(np.float32).astype(np.float64)
    scale, turn = float(np.float32(2**-32)), float(np.float32(2**-32) * _TWO_PI)
    uniform = (reals[::2] * scale + scale / 2).astype(np.float32)
    angle = (reals[1::2] * turn + turn / 2).astype(np.float32)
    cosines, sines = _box_muller(uniform, angle)
    return np.stack([sines, cosines], axis=1).reshape(words.shape)
