"""Brownian motion from a seed: torchsde's tree without torchsde, as diffusers' DPM-Solver SDE asks for it.

The motion over [start, end] is known at the ends, and each half of an interval from the whole and one noise of its own
(Levy's construction; Kidger et al., arXiv:2105.13493, sec. 4), whose seed follows from the place in the tree. So a
value depends on the seed and its time alone, not on what was asked before. Times are rounded to six decimals.
"""

from __future__ import annotations

import math

import numpy as np

from .arrays import F32, F64
from .noise_torch import CpuStream

_DECIMALS = 6
_POOL_SIZE = 24


class BrownianTree:
    """`torchsde.BrownianTree(t0=start, t1=end, entropy=seed, tol=1e-6, pool_size=24)` of tensors on the CPU."""

    def __init__(self, seed: int, start: float, end: float, shape: tuple[int, ...]) -> None:
        self._seed, self._shape = seed, shape
        self._start, self._end = round(start, _DECIMALS), round(end, _DECIMALS)
        self._whole = self._noise() * math.sqrt(end - start)

    def __call__(self, time: float) -> F64:
        """How far the motion is from its start at `time`, which is taken into [start, end]."""
        time = min(max(round(time, _DECIMALS), self._start), self._end)
        left, right = self._start, self._end
        at_left, increment = np.zeros(self._shape), self._whole
        key = depth = 0
        while time not in (left, right):
            middle = round(0.5 * (right + left), _DECIMALS)
            before, after = (middle - left) / (right - left), right - middle
            of_left = before * increment + math.sqrt(before * after) * self._noise(key, depth)
            if time < middle:
                right, increment, key = middle, of_left, 2 * key
            else:
                at_left, increment = at_left + of_left, increment - of_left
                left, key = middle, 2 * key + 1
            depth += 1
        return at_left if time == left else at_left + increment

    def _noise(self, *place: int) -> F64:
        state = np.random.SeedSequence(self._seed, spawn_key=place, pool_size=_POOL_SIZE).generate_state(1)
        return CpuStream(int(state[0])).randn(math.prod(self._shape)).reshape(self._shape).astype(np.float64)


class TorchSdeNoise:
    """Noise for the calls of a sampler along falling `sigmas`: picture k has the tree of seed + k.

    What diffusers' `BrownianTreeNoiseSampler` gives for the `noise_sampler_seed` seed + k.
    """

    def __init__(self, seed: int, num_images: int, sigmas: F64, first_call: int) -> None:
        self._seeds = range(seed, seed + num_images)
        self._levels = [float(sigma) for sigma in sigmas.astype(np.float32)]
        self._call = first_call
        self._trees: list[BrownianTree] = []

    def normal(self, shape: tuple[int, ...]) -> F32:
        """See `NoiseSource`: the increments of the next call, divided by their standard deviation."""
        if not self._trees:
            least = min(sigma for sigma in self._levels if sigma > 0)
            self._trees = [BrownianTree(seed, least, self._levels[0], shape) for seed in self._seeds]
        high, low = self._levels[self._call : self._call + 2]
        self._call += 1
        noise = np.stack([tree(low) - tree(high) for tree in self._trees])
        return (noise / math.sqrt(high - low)).astype(np.float32)
