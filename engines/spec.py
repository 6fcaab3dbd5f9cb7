"""What goes into a graph and what comes out: one table, from which everything else is derived."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, GraphMismatch
from .packed import File

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output. A string in `shape` is a free dimension, equal wherever its name recurs.

    `8*height` and `height/8` are made from `height`, the latter rounded up.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def fixed(self, sizes: Mapping[str, int]) -> TensorSpec:
        """The tensor without free dimensions. KeyError where `sizes` lacks one."""
        return replace(self, shape=tuple(d if isinstance(d, int) else _size(d, sizes) for d in self.shape))


def _size(dimension: str, sizes: Mapping[str, int]) -> int:
    factor, name, divisor = re.fullmatch(r"(?:(\d+)\*)?(\w+)(?:/(\d+))?", dimension).groups(default="1")  # type: ignore[union-attr]
    return -(-int(factor) * sizes[name] // int(divisor))


@dataclass(frozen=True)
class GraphSpec:
    """The inputs and outputs of one graph, in the graph's own order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def fixed(self, sizes: Mapping[str, int]) -> GraphSpec:
        """The graph at one size: `sizes` are those of its free dimensions, such as batch, height and width."""
        inputs, outputs = (tuple(t.fixed(sizes) for t in tensors) for tensors in (self.inputs, self.outputs))
        return GraphSpec(self.name, inputs, outputs)

    def check_names(self, model: File, inputs: Iterable[str], outputs: Iterable[str]) -> None:
        """Raise `BundleError` unless those that a backend finds in the file `model` are this graph's."""
        for kind, tensors, names in (("inputs", self.inputs, inputs), ("outputs", self.outputs, outputs)):
            found, wanted = sorted(names), sorted(tensor.name for tensor in tensors)
            if found != wanted:
                raise BundleError(f"{model}: {kind} {', '.join(found)}, expected {', '.join(wanted)}; export it again")

    def check_feeds(self, feeds: Mapping[str, Array], *, partial: bool = False) -> None:
        """Raise `GraphMismatch` unless `feeds` has this graph's inputs in fitting dtypes and shapes.

        All of them and no other; with `partial`, some may be missing.
        """
        self._check("input", self.inputs, feeds, partial=partial)

    def check_outputs(self, outputs: Mapping[str, Array]) -> None:
        """Raise `GraphMismatch` unless `outputs` has exactly this graph's outputs in fitting dtypes and shapes."""
        self._check("output", self.outputs, outputs)

    def _check(
        self, kind: str, specs: tuple[TensorSpec, ...], values: Mapping[str, Array], *, partial: bool = False
    ) -> None:
        names = {spec.name for spec in specs}
        if (missing := names - values.keys()) and not partial:
            raise GraphMismatch(f"{self.name}: missing {kind} {', '.join(sorted(missing))}")
        if unknown := values.keys() - names:
            raise GraphMismatch(
                f"{self.name}: unknown {kind} {', '.join(sorted(unknown))}; known: {', '.join(sorted(names))}"
            )
        sizes: dict[str, int] = {}
        for spec in specs:
            if spec.name in values:
                self._check_tensor(spec, values[spec.name], sizes)

    def _check_tensor(self, spec: TensorSpec, value: Array, sizes: dict[str, int]) -> None:
        where = f"{self.name}.{spec.name}"
        if value.dtype != np.dtype(spec.dtype):
            raise GraphMismatch(
                f"{where}: dtype {value.dtype}, expected {spec.dtype}; convert with .astype({spec.dtype!r})"
            )
        wanted = [
            sizes.setdefault(d, n) if isinstance(d, str) else d for d, n in zip(spec.shape, value.shape, strict=False)
        ]
        if value.ndim != len(spec.shape) or list(value.shape) != wanted:
            shape = ", ".join(f"{d}={sizes[d]}" if d in sizes else str(d) for d in spec.shape)
            raise GraphMismatch(f"{where}: shape {tuple(value.shape)}, expected ({shape})")
