"""Weights: where each tensor lies in a safetensors file, and streaming them into a new one."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from edgediffusion.engines.errors import ExportError
from edgediffusion.runtime.low_rank import Factors, factor_names, fuse

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SCALE = "_scale"  # behind the name of an int8 weight: its scales
TORCH_DTYPES = FLOATS | {"I8": torch.int8}


class Weight(Protocol):
    """A tensor that is made when it is needed. `file` names its origin in messages, `dtype` is safetensors' word."""

    @property
    def file(self) -> Path: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    def read(self) -> torch.Tensor:
        """The values, of this `dtype` and `shape`."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file. `offset` counts from the start of the file; `offset` and `length` are bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int

    def read(self) -> torch.Tensor:
        """The values as they lie in the file."""
        raw = np.fromfile(self.file, np.uint8, self.length, offset=self.offset)
        return torch.from_numpy(raw).view(TORCH_DTYPES[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class Derived:
    """What subclasses compute from `weight`, and like it where they do not say otherwise."""

    weight: Weight

    @property
    def file(self) -> Path:
        """See `Weight`."""
        return self.weight.file

    @property
    def dtype(self) -> str:
        """See `Weight`."""
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Weight`."""
        return self.weight.shape


@dataclass(frozen=True)
class CastWeight(Derived):
    """`weight` in another dtype, the one named `to`."""

    to: str

    @property
    def dtype(self) -> str:
        """See `Weight`."""
        return self.to

    def read(self) -> torch.Tensor:
        """See `Weight`."""
        return self.weight.read().to(TORCH_DTYPES[self.to])


@dataclass(frozen=True)
class Int8Weight(CastWeight):
    """`weight` in units of its scales, rounded to the nearest."""

    to: str = "I8"

    def read(self) -> torch.Tensor:
        """See `Weight`. From -127 to 127."""
        values = self.weight.read().float()
        scales = _scales(values).reshape(-1, *(1,) * (values.ndim - 1))
        return (values / scales).round().to(torch.int8)


@dataclass(frozen=True)
class Scales(CastWeight):
    """A 127th of the largest value of each output channel (axis 0) of `weight`."""

    to: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Weight`."""
        return self.weight.shape[:1]

    def read(self) -> torch.Tensor:
        """See `Weight`. Above zero."""
        return _scales(self.weight.read().float())


@dataclass(frozen=True)
class Constant:
    """A number."""

    file: Path
    value: float
    dtype: str = "F32"
    shape: tuple[int, ...] = ()

    def read(self) -> torch.Tensor:
        """See `Weight`."""
        return torch.tensor(self.value)


@dataclass(frozen=True)
class LowRank:
    """What a LoRA adds to a weight: scale * up @ down. `up` is (out, rank, ...), `down` (rank, in, ...)."""

    up: Weight
    down: Weight
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """Of what is added, flattened behind the first dimension."""
        return self.up.shape[0], math.prod(self.down.shape[1:])

    def read(self) -> Factors:
        """As NumPy has them."""
        return Factors(self.up.read().float().numpy(), self.down.read().float().numpy(), self.scale)


@dataclass(frozen=True)
class Fused(Derived):
    """`weight` with a LoRA added, in the type of `weight`: `runtime.low_rank`."""

    delta: LowRank

    @property
    def file(self) -> Path:
        """That of the LoRA, which is the likelier culprit."""
        return self.delta.up.file

    def read(self) -> torch.Tensor:
        """See `Weight`."""
        stored = io.BytesIO(self.weight.read().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        fused = bytearray(b"".join(fuse(stored, self.dtype, [self.delta.read()])))
        return torch.frombuffer(fused, dtype=TORCH_DTYPES[self.dtype]).reshape(self.shape)


def factors_of(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The factors of the LoRAs added to `weights`, under the names that `runtime.low_rank` has for them."""
    factors: dict[str, Weight] = {}
    for key, weight in weights.items():
        deltas = _deltas(weight)
        for i, delta in enumerate(deltas):
            parts = (delta.up, delta.down, Constant(delta.up.file, delta.scale))
            factors |= dict(zip(factor_names(key, i), parts, strict=True))
    return factors


def _deltas(weight: Weight) -> list[LowRank]:
    """In the order in which they are added."""
    return [*_deltas(weight.weight), weight.delta] if isinstance(weight, Fused) else []


def _scales(values: torch.Tensor) -> torch.Tensor:
    largest = values.flatten(1).abs().amax(1)
    return torch.where(largest > 0, largest / 127, 1)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the safetensors file `path`, in the order in which their bytes lie there.

    Raises:
        ExportError: it is no safetensors file, or a truncated one.
    """
    try:
        with safe_open(path, framework="np"):  # checks the header against the size of the file
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path}: not a whole safetensors file ({error}); download or convert it again") from None
    header.pop("__metadata__", None)
    tensors = {}
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = entry["data_offsets"]
        tensors[key] = StoredTensor(path, entry["dtype"], tuple(entry["shape"]), 8 + size + start, end - start)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """What the header of the safetensors file `path` says beside its tensors; `read_header` has found it whole."""
    with safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})


def write_tensors(path: Path, weights: Mapping[str, Weight]) -> dict[str, StoredTensor]:
    """Write `weights` into the new safetensors file `path`, widest dtype first, and say where each one lies.

    One tensor is in memory at a time. The same tensors in the same order give the same bytes.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    placed: dict[str, StoredTensor] = {}
    end = 0
    for key, weight in sorted(weights.items(), key=lambda item: -TORCH_DTYPES[item[1].dtype].itemsize):
        length = math.prod(weight.shape) * TORCH_DTYPES[weight.dtype].itemsize
        start, end = end, end + length
        header[key] = {"dtype": weight.dtype, "shape": weight.shape, "data_offsets": (start, end)}
        placed[key] = StoredTensor(path, weight.dtype, weight.shape, start, length)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in placed:
            file.write(weights[key].read().reshape(-1).view(torch.uint8).numpy().data)
    return {key: replace(tensor, offset=8 + len(text) + tensor.offset) for key, tensor in placed.items()}


def cast(weight: Weight, dtype: str) -> Weight:
    """`weight` in `dtype`: itself where it is, so that its bytes are copied.

    A LoRA is added to the weight as it is stored without one, so that what is stored with it can be told by that.
    """
    if isinstance(weight, Fused):
        return replace(weight, weight=cast(weight.weight, dtype))
    return weight if weight.dtype == dtype else CastWeight(weight, dtype)


def quantize(key: str, weight: Weight) -> dict[str, Weight]:
    """`weight` (at least two axes) in 8 bits, symmetric with one scale an output channel: `key` and `key`_scale.

    The values are `key` times its scale, along axis 0.
    """
    return {key: Int8Weight(weight), f"{key}{SCALE}": Scales(weight)}


def load(key: str, weight: Weight) -> torch.Tensor:
    """`weight` in float32.

    Raises:
        ExportError: it holds NaN or infinity.
    """
    values = weight.read().float()
    if not torch.isfinite(values).all():
        raise ExportError(f"{weight.file}: {key} holds NaN or infinity; a checkpoint with such weights draws nothing")
    return values
