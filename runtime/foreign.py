"""Folders of ONNX graphs that other tools wrote in diffusers' layout, such as optimum's: what a manifest would say.

optimum's graphs hold their weights, take a timestep without an axis and, depending on version and precision, integer
timesteps, 32-bit ids and half-precision arrays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from edgediffusion.engines.base import Engine
from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.json_object import parse_object
from edgediffusion.engines.onnx_file import read_onnx
from edgediffusion.engines.packed import File
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec

from .families import FAMILIES
from .manifest import MANIFEST, FileRecord, GraphRecord, Manifest, Parity

GRAPH = "model.onnx"
INDEX = "model_index.json"
PREFIX = "ORT"  # of optimum's pipeline classes
_UNKNOWN = "unknown"


def is_foreign(folder: Path) -> bool:
    """Whether `folder` holds graphs, and no manifest that describes them."""
    return not (folder / MANIFEST).exists() and (folder / INDEX).is_file() and any(folder.glob(f"*/{GRAPH}"))


def describe(folder: Path) -> Manifest:
    """The manifest that the foreign `folder` lacks. Nobody digested its files or compared its graphs with torch.

    Raises:
        BundleError: it is of no known family, or a graph cannot be read.
    """
    models = {path.parent.name: path for path in sorted(folder.glob(f"*/{GRAPH}"))}
    found = {name: read_onnx(path) for name, path in models.items()}
    graphs = {
        name: GraphRecord(
            model=f"{name}/{GRAPH}",
            weights=f"{name}/{graph.data[0] if graph.data else GRAPH}",
            spec=_loosened(graph.spec),
            parity=Parity(error=np.nan, tolerance=np.nan, worst="not compared with torch"),
            dtype=next((t.dtype for t in graph.spec.outputs), _UNKNOWN),
            weights_dtype=_UNKNOWN,
        )
        for name, graph in found.items()
    }
    files = [path for path in sorted(folder.glob("*/*")) if path.is_file()]
    return Manifest(
        family=_family(folder, found.keys()),
        source=folder.resolve().name,
        source_sha256={},
        opset=max((graph.opset for graph in found.values()), default=0),
        license=_UNKNOWN,
        versions={},
        graphs=graphs,
        files={
            path.relative_to(folder).as_posix(): FileRecord(bytes=path.stat().st_size, sha256=None)
            for path in [folder / INDEX, *files]
        },
    )


def read_manifest(folder: File) -> Manifest:
    """What `folder`, which may be packed, says of itself, or what its graphs say.

    Raises:
        BundleError: see `Manifest.read` and `describe`.
    """
    return describe(folder) if isinstance(folder, Path) and is_foreign(folder) else Manifest.read(folder)


def _loosened(spec: GraphSpec) -> GraphSpec:
    """No two free dimensions are the same: optimum calls the width of SDXL's `text_embeds` sequence_length."""

    def loosen(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        shapes = [tuple(d if isinstance(d, int) else f"{t.name}.{i}" for i, d in enumerate(t.shape)) for t in tensors]
        return tuple(TensorSpec(t.name, t.dtype, shape) for t, shape in zip(tensors, shapes, strict=True))

    return GraphSpec(spec.name, loosen(spec.inputs), loosen(spec.outputs))


def _family(folder: Path, graphs: Collection[str]) -> str:
    """The first family of that pipeline class that has all its graphs; failing that, the first, whose lack is told."""
    try:
        pipeline_class = str(parse_object((folder / INDEX).read_bytes())["_class_name"])
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{folder / INDEX}: cannot be read ({error!r}); export the model again") from None
    pipeline_class = pipeline_class.removeprefix(PREFIX)
    families = [name for name, family in FAMILIES.items() if pipeline_class in family.pipeline_classes]
    if not families:
        known = {name for family in FAMILIES.values() for name in family.pipeline_classes}
        raise BundleError(f"{folder / INDEX}: pipeline class {pipeline_class!r}, known: {', '.join(sorted(known))}")
    return next((name for name in families if FAMILIES[name].required.issubset(graphs)), families[0])


def adapt(engine: Engine) -> Engine:
    """`engine`, or, where dtypes or timestep of its graph are not ours, one that converts there and back."""
    tensors = (*engine.spec.inputs, *engine.spec.outputs)
    ours = all(t.dtype == _dtype(t.name) and t.shape for t in tensors)
    return engine if ours else _Adapted(engine)


def _dtype(name: str) -> str:
    """What our own graphs have."""
    return "int64" if name == "input_ids" else "float32"


class _Adapted:
    """Takes and gives what our own graphs do. `spec` stays that of the graph.

    An integer timestep is the nearest one; samplers whose timesteps have fractions lose them, as they do in optimum.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._inputs = {tensor.name: tensor for tensor in engine.spec.inputs}

    @property
    def spec(self) -> GraphSpec:
        """See `Engine`."""
        return self._engine.spec

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Engine`."""
        return _ours(self._engine(self._convert(feeds)))

    def each(self, feeds: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """See `Engine`."""
        return map(_ours, self._engine.each(map(self._convert, feeds)))

    def bind(self, constants: Mapping[str, Array]) -> Engine:
        """See `Engine`."""
        return _Adapted(self._engine.bind(self._convert(constants)))

    def close(self) -> None:
        """See `Engine`."""
        self._engine.close()

    def __enter__(self) -> _Adapted:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _convert(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {name: _fit(value, self._inputs.get(name)) for name, value in feeds.items()}


def _ours(outputs: Mapping[str, Array]) -> dict[str, Array]:
    return {name: value.astype(_dtype(name), copy=False) for name, value in outputs.items()}


def _fit(value: Array, tensor: TensorSpec | None) -> Array:
    if tensor is None:  # an unknown input, of which the engine complains
        return value
    if tensor.dtype.startswith("int"):
        value = np.rint(value)
    if value.size == 1:  # a timestep is () there, (1,) here
        value = value.reshape((1,) * len(tensor.shape))
    return value.astype(tensor.dtype)
