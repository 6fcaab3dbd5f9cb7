"""Weights on disk: where each tensor lies in a safetensors file, and copying them into a bundle byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from edgediffusion.engines.errors import ExportError


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a safetensors file. `offset` counts from the start of the file; `offset` and `length` are bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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


def write_tensors(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Copy `tensors` into the new safetensors file `path`, widest dtype first, and say where each one lies now.

    The same tensors in the same order give the same bytes.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    placed: dict[str, StoredTensor] = {}
    end = 0
    for key, tensor in sorted(tensors.items(), key=lambda item: -TORCH_DTYPES[item[1].dtype].itemsize):
        start, end = end, end + tensor.length
        header[key] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (start, end)}
        placed[key] = replace(tensor, file=path, offset=start)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key in placed:
            file.write(_raw(tensors[key]).data)
    return {key: replace(tensor, offset=8 + len(text) + tensor.offset) for key, tensor in placed.items()}


def load(key: str, tensor: StoredTensor) -> torch.Tensor:
    """`tensor` in float32.

    Raises:
        ExportError: it holds NaN or infinity.
    """
    values = torch.from_numpy(_raw(tensor)).view(TORCH_DTYPES[tensor.dtype]).reshape(tensor.shape).float()
    if not torch.isfinite(values).all():
        raise ExportError(f"{tensor.file}: {key} holds NaN or infinity; a checkpoint with such weights draws nothing")
    return values


def _raw(tensor: StoredTensor) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.fromfile(tensor.file, np.uint8, tensor.length, offset=tensor.offset)
