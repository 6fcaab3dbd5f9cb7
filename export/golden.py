"""What torch computes from a small input, kept in the bundle for `edgediffusion verify` on other machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from torch import nn

from edgediffusion.engines.spec import Array, GraphSpec
from edgediffusion.runtime.golden import INPUT, OUTPUT, tiled

from .families.base import Sample
from .verify import references

EXTENT = 128  # height and width that are kept of a picture
MOST = 1 << 19  # bytes of outputs; SDXL's text encoders have 13 to 33 hidden states, of which the last ones are used


def golden_sample(spec: GraphSpec, samples: Sequence[Sample]) -> Sample:
    """The smallest of `samples`, one of its batch, at half its height and width where the graph leaves them free.

    Where it does not, the upper left corner, which is tiled again where the sample is used.
    """
    smallest = min(samples, key=lambda sample: sum(array.nbytes for array in sample.feeds.values()))
    feeds = {}
    for tensor in spec.inputs:
        sizes = zip(tensor.shape, smallest.feeds[tensor.name].shape, strict=True)
        cut = tuple(slice(_kept(dimension, size)) for dimension, size in sizes)
        feeds[tensor.name] = _corner(smallest.feeds[tensor.name][cut])
    return Sample(f"golden, cut from {smallest.label}", feeds)


def _kept(dimension: int | str, size: int) -> int:
    if dimension == "batch":
        return 1
    return size if isinstance(dimension, int) else size // 2


def _corner(array: Array) -> Array:
    corner: Array = np.ascontiguousarray(array[..., :EXTENT, :EXTENT] if array.ndim == 4 else array)
    return corner


def write_golden(path: Path, module: nn.Module, spec: GraphSpec, samples: Sequence[Sample]) -> None:
    """Write the inputs of the `golden_sample` and what `module` makes of them: outputs up to `MOST`, the last first."""
    sample = golden_sample(spec, samples)
    (outputs,) = references(module, spec, [Sample(sample.label, tiled(sample.feeds, spec))])
    kept: dict[str, Array] = {}
    for name, array in reversed(outputs.items()):
        array = _corner(array)
        if kept and sum(other.nbytes for other in kept.values()) + array.nbytes > MOST:
            break
        kept[name] = array
    arrays = {INPUT + name: array for name, array in sample.feeds.items()}
    arrays |= {OUTPUT + name: array for name, array in kept.items()}
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(save(arrays, metadata={"label": sample.label}))
