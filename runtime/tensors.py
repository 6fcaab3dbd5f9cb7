"""Arrays in a safetensors file."""

from __future__ import annotations

from collections.abc import Collection
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


def read_tensors(path: File, names: Collection[str] | None = None) -> tuple[dict[str, str], dict[str, Array]]:
    """The metadata of the file, and its arrays, or those of them that are in `names`. bfloat16 becomes float32.

    Raises:
        ValueError: it is not such a file, or has an array of another type.
    """
    size = size_of(path)
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise ValueError(f"a header of {start - 8} bytes in a file of {size}")
        try:
            header = parse_object(file.read(start - 8))
            metadata = dict(header.pop("__metadata__", {}))
            arrays = {}
            for name, entry in header.items():
                if names is None or name in names:
                    first, last = entry["data_offsets"]
                    if not 0 <= first <= last <= size - start:
                        raise ValueError(f"{name} from {first} to {last} of {size - start} bytes")
                    file.seek(start + first)
                    raw = np.frombuffer(file.read(last - first), _DTYPES[entry["dtype"]])
                    arrays[name] = _widened(raw, entry["dtype"]).reshape(entry["shape"])
        except (KeyError, OverflowError, TypeError) as error:
            raise ValueError(f"a header that cannot be read ({error!r})") from None
    return metadata, arrays


def _widened(raw: Array, dtype: str) -> Array:
    return (raw.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else raw
