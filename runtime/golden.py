"""Does a bundle compute here what torch computed where it was exported? Some of that lies in `golden/`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.packed import File
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec

from .bundle import Bundle
from .manifest import graph_name
from .tensors import read_tensors

GOLDEN = "golden"
INPUT, OUTPUT = "input.", "output."  # before the names of the tensors


@dataclass(frozen=True, kw_only=True)
class Check:
    """How far one graph is from torch here: max |graph - torch| / max |torch| of its worst output.

    `component` is followed by the variant, if the graph is one.
    """

    component: str
    output: str
    error: float
    tolerance: float
    sample: str

    @property
    def passed(self) -> bool:
        """NaN fails."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Golden:
    """One sample. `outputs` may be some of the graph's."""

    label: str
    feeds: dict[str, Array]
    outputs: dict[str, Array]


def verify(bundle: Bundle) -> Iterator[Check]:
    """Run each graph of `bundle`, one at a time, on its golden inputs.

    Raises:
        BundleError: there are none, or they are damaged, or see `Bundle.engine`.
    """
    paths = {graph: golden_path(*graph) for graph in bundle.manifest.all_graphs}
    if missing := [graph_name(*graph) for graph, path in paths.items() if path not in bundle.manifest.files]:
        raise BundleError(
            f"{bundle.path}: no golden outputs of {', '.join(sorted(missing))}; export it again with this version"
        )
    for (name, variant), path in paths.items():
        spec = bundle.manifest.all_graphs[name, variant].spec
        yield check(bundle, name, variant, [read_golden(bundle.path / path, spec)])


def golden_path(component: str, variant: str | None) -> str:
    """Where a bundle keeps what torch made of a graph's golden inputs."""
    return f"{GOLDEN}/{graph_name(component, variant)}.safetensors"


def check(bundle: Bundle, name: str, variant: str | None, samples: Iterable[Golden]) -> Check:
    """Run a graph of the component `name` on `samples`, of which the worst is reported, and free it."""
    engine, graph = bundle.engine(name, variant), bundle.manifest.all_graphs[name, variant]
    errors = {
        (sample.label, output): error
        for sample in samples
        for output, error in relative_errors(engine(tiled(sample.feeds, graph.spec)), sample.outputs).items()
    }
    bundle.release(name)
    label, output = max(errors, key=errors.__getitem__)
    return Check(
        component=graph_name(name, variant),
        output=output,
        error=errors[label, output],
        tolerance=graph.parity.tolerance,
        sample=label,
    )


def relative_errors(got: Mapping[str, Array], want: Mapping[str, Array]) -> dict[str, float]:
    """max |got - want| / max |want| of each output in `want`, in float64; infinite where either holds NaN.

    Of a picture `want` may have the upper left corner only; where it is the larger one, the error is infinite too.
    """
    errors = {}
    for name, wanted in want.items():
        found = got[name][tuple(map(slice, wanted.shape))]
        if found.shape != wanted.shape:
            errors[name] = float("inf")
            continue
        scale = np.abs(wanted, dtype=np.float64).max()
        error = np.abs(np.subtract(found, wanted, dtype=np.float64)).max()
        error = error if scale == 0 else error / scale
        errors[name] = float("inf") if np.isnan(error) else float(error)
    return errors


def tiled(feeds: Mapping[str, Array], spec: GraphSpec) -> dict[str, Array]:
    """`feeds`, repeated along each axis until they have the sizes that `spec` fixes."""
    inputs = {tensor.name: tensor.shape for tensor in spec.inputs}
    return {name: _tile(array, inputs[name]) for name, array in feeds.items()}


def _tile(array: Array, shape: tuple[int | str, ...]) -> Array:
    for axis, size in enumerate(shape):
        if isinstance(size, int):
            array = np.take(array, np.arange(size) % array.shape[axis], axis)
    return array


def read_golden(path: File, spec: GraphSpec) -> Golden:
    """Read a safetensors file of the inputs, and some of the outputs, of the graph that has this `spec`.

    Raises:
        BundleError: it is none.
    """
    try:
        metadata, arrays = read_tensors(path)
        label = metadata["label"]
        feeds, outputs = (
            {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
            for kind in (INPUT, OUTPUT)
        )
        _check_ranks(feeds, spec.inputs)
        _check_ranks(outputs, spec.outputs)
        if not outputs or len(feeds) != len(spec.inputs):
            raise ValueError(f"{len(feeds)} of {len(spec.inputs)} inputs, {len(outputs)} outputs")
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: not golden outputs ({error!r}); export the bundle again") from None
    return Golden(label, feeds, outputs)


def _check_ranks(arrays: Mapping[str, Array], tensors: Iterable[TensorSpec]) -> None:
    ranks = {tensor.name: len(tensor.shape) for tensor in tensors}
    for name, array in arrays.items():
        if not array.size or array.ndim != ranks[name]:
            raise ValueError(f"{name} of shape {array.shape}")
