"""Low-rank adaptation (arXiv:2106.09685) of a stored weight, the same bits on every machine: W + scale * up @ down.

A bundle that LoRAs were fused into has their factors beside the weights, so that a delta pack need not have the sums.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from edgediffusion.engines.packed import File
from edgediffusion.engines.spec import Array

from .tensors import Placed, decode, encode, read_arrays, read_header

FACTORS = "lora.safetensors"  # beside the weights
FLOATS = {"F32": 4, "F16": 2, "BF16": 2}  # bytes of a value
_BLOCK = 1 << 16  # values, so that they stay in a core's cache


@dataclass(frozen=True)
class Factors:
    """What one LoRA adds to a weight: `up` (out, rank, ...) and `down` (rank, in, ...), float32 or narrower."""

    up: Array
    down: Array
    scale: float


def factor_names(weight: str, index: int) -> tuple[str, str, str]:
    """What up, down and scale of the LoRA `index` of a weight are called in the file."""
    up, down, scale = (f"{weight}.{index}.{part}" for part in ("up", "down", "scale"))
    return up, down, scale


@dataclass(frozen=True)
class FactorFile:
    """A file of factors, whose header is read once."""

    path: File

    @functools.cached_property
    def _placed(self) -> dict[str, Placed]:
        return read_header(self.path)[1]

    def of(self, weight: str) -> list[Factors]:
        """Those of the weight that it is called, in the order in which they were added.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it has none of that weight.
        """
        found: list[Factors] = []
        while True:
            names = factor_names(weight, len(found))
            if found and not self._placed.keys() & names:
                return found
            if lacking := set(names) - self._placed.keys():
                raise ValueError(f"{min(lacking)} is missing")
            arrays = read_arrays(self.path, {name: self._placed[name] for name in names})
            up, down, scale = (arrays[name] for name in names)
            found.append(Factors(up, down, scale.item()))


def fuse(stored: BinaryIO, dtype: str, factors: Sequence[Factors]) -> Iterator[bytes]:
    """The weight that begins where the file `stored` stands, with every LoRA added, a few rows at a time.

    Sums and products are in float32, one after the other in the order of the rank: no library for matrices, whose order
    depends on the machine. Each LoRA's sum is rounded to `dtype`, a key of `FLOATS`.

    Raises:
        ValueError: the factors do not fit together, or the file ends.
    """
    pairs = [(_matrix(each.up), _matrix(each.down), np.float32(each.scale)) for each in factors]
    outputs, inputs = pairs[0][0].shape[0], pairs[0][1].shape[1]
    for up, down, _ in pairs:
        if up.shape != (outputs, len(down)) or down.shape[1] != inputs or not up.size * down.size:
            raise ValueError(f"factors of {up.shape} and {down.shape} for a weight of {outputs, inputs}")
    step = max(1, _BLOCK // inputs)
    for first in range(0, outputs, step):
        rows = slice(first, min(first + step, outputs))
        size = (rows.stop - first) * inputs * FLOATS[dtype]
        raw = stored.read(size)
        if len(raw) != size:
            raise ValueError(f"the weight ends after {len(raw)} of {size} bytes")
        with np.errstate(all="ignore"):
            for up, down, scale in pairs:
                total = decode(raw, dtype).astype(np.float32).reshape(-1, inputs)
                total += _product(up[rows], down) * scale
                raw = encode(total, dtype)
        yield raw


def _matrix(factor: Array) -> Array:
    """In float32, what lies behind the first axis in one."""
    rows = np.atleast_2d(factor)
    return rows.reshape(len(rows), -1).astype(np.float32)


def _product(up: Array, down: Array) -> Array:
    total: Array = up[:, :1] * down[0]
    term = np.empty_like(total)
    for k in range(1, len(down)):
        np.multiply(up[:, k : k + 1], down[k], out=term)
        total += term
    return total
