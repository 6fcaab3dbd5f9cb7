"""Arrays in a safetensors file."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgediffusion.engines.json_object import parse_object
from edgediffusion.engines.packed import File, size_of
from edgediffusion.engines.spec import Array

_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
}


@dataclass(frozen=True)
class Placed:
    """Where an array lies in its file: `offset` and `length` in bytes; `dtype` is safetensors' word, such as "F16"."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def read_header(path: File) -> tuple[dict[str, str], dict[str, Placed]]:
    """The metadata of the file, and where its arrays lie within it.

    Raises:
        ValueError: it is not such a file.
    """
    size = size_of(path)
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise ValueError(f"a header of {start - 8} bytes in a file of {size}")
        text = file.read(start - 8)
    try:
        header = parse_object(text)
        metadata, placed = dict(header.pop("__metadata__", {})), {}
        for name, entry in header.items():
            first, last = map(operator.index, entry["data_offsets"])
            if not 0 <= first <= last <= size - start:
                raise ValueError(f"{name!r} from {first} to {last} of {size - start} bytes")
            placed[name] = Placed(entry["dtype"], tuple(entry["shape"]), start + first, last - first)
    except (KeyError, TypeError) as error:
        raise ValueError(f"a header that cannot be read ({error!r})") from None
    return metadata, placed


def read_tensors(path: File, names: Collection[str] | None = None) -> tuple[dict[str, str], dict[str, Array]]:
    """The metadata of the file, and its arrays, or those of them that are in `names`. bfloat16 becomes float32.

    Raises:
        ValueError: it is not such a file, or has an array of another type.
    """
    metadata, placed = read_header(path)
    return metadata, read_arrays(path, {name: at for name, at in placed.items() if names is None or name in names})


def read_arrays(path: File, placed: Mapping[str, Placed]) -> dict[str, Array]:
    """Those that lie there.

    Raises:
        ValueError: one is of another type.
    """
    arrays = {}
    with path.open("rb") as file:
        for name, at in placed.items():
            file.seek(at.offset)
            try:
                arrays[name] = decode(file.read(at.length), at.dtype).reshape(at.shape)
            except (KeyError, OverflowError, TypeError) as error:
                raise ValueError(f"{name!r}, which cannot be read ({error!r})") from None
    return arrays


def decode(raw: bytes, dtype: str) -> Array:
    """One-dimensional; bfloat16 becomes float32."""
    values = np.frombuffer(raw, _DTYPES[dtype])
    return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else values


def encode(values: Array, dtype: str) -> bytes:
    """float32 values, rounded to the nearest, ties to even."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(_DTYPES[dtype]).tobytes()
    return values.astype(_DTYPES[dtype]).tobytes()
