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

PICTURE, LATENTS = 128, 16  # height and width that are kept of three channels, and of any others
MOST = 1 << 19  # bytes of outputs; SDXL's text encoders have 13 to 33 hidden states, of which the last ones are used


def golden_sample(spec: GraphSpec, samples: Sequence[Sample]) -> Sample:
    """The smallest of `samples`, one of its batch, at half its height and width where the graph leaves them free.

    Where it does not, a corner of one, which is tiled again where the sample is used.
    """
    smallest = min(samples, key=lambda sample: sum(array.nbytes for array in sample.feeds.values()))
    feeds, sizes = smallest.feeds, dict[str, int]()
    for tensor in spec.inputs:
        dimensions = zip(tensor.shape, feeds[tensor.name].shape, strict=True)
        part = 2 if len(tensor.shape) == 4 else 1
        sizes |= {dimension: size // part for dimension, size in dimensions if isinstance(dimension, str)}
    kept = spec.fixed(sizes | {"batch": 1})  # what is made from height and width follows these
    cut = {tensor.name: _corner(feeds[tensor.name][tuple(map(slice, tensor.shape))]) for tensor in kept.inputs}
    return Sample(f"golden, cut from {smallest.label}", cut)


def _corner(array: Array) -> Array:
    """The first of a batch, and of that the upper left corner."""
    extent = PICTURE if array.shape[1:2] == (3,) else LATENTS
    corner: Array = np.ascontiguousarray(array[:1, :, :extent, :extent] if array.ndim == 4 else array[:1])
    return corner


def write_golden(path: Path, module: nn.Module, spec: GraphSpec, samples: Sequence[Sample]) -> None:
    """Write the inputs of the `golden_sample` and what `module` makes of them: outputs up to `MOST`, the last first."""
    sample = golden_sample(spec, samples)
    (outputs,) = references(module, spec, [Sample(sample.label, tiled(sample.feeds, spec))])
    kept: dict[str, Array] = {}
    # The last of the hidden states, with its norm, comes before them all.
    for name, array in sorted(reversed(outputs.items()), key=lambda item: item[0] != "last_hidden_state"):
        array = _corner(array)
        if kept and sum(other.nbytes for other in kept.values()) + array.nbytes > MOST:
            break
        kept[name] = array
    arrays = {INPUT + name: array for name, array in sample.feeds.items()}
    arrays |= {OUTPUT + name: array for name, array in kept.items()}
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(save(arrays, metadata={"label": sample.label}))
