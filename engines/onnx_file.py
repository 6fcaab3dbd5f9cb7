"""What an ONNX file says about itself, read without loading it, weights skipped.

Field numbers are those of onnx.proto3, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from .errors import BundleError
from .files import sha256_of
from .packed import File, Packed, size_of
from .spec import Array, GraphSpec, TensorSpec
from .wire import Message

_DTYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
GRAPH, _OPSET_IMPORT = 7, 8  # of a model
INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12  # of a graph
_DIMS, _DATA_TYPE, _NAME, EXTERNAL_DATA = 1, 2, 8, 13  # of a tensor
# The name of a weight ends so where its shape has the channels last and its place in the file has them second.
TURNED = "/channels_last"


@dataclass(frozen=True)
class OnnxFile:
    """`spec` holds the graph's own names, dtypes and shapes; `data` the files, beside it, that weights are in.

    `weights` is how many numbers those are.
    """

    opset: int
    spec: GraphSpec
    data: tuple[str, ...]
    weights: int


@contextmanager
def open_model(path: File) -> Iterator[Message]:
    """The whole of an ONNX file.

    Raises:
        BundleError: what is looked for in it, before the context is left, is not there or not as it should be.
    """
    try:
        with path.open("rb") as file:
            yield Message(file, 0, size_of(path))
    except BundleError:
        raise
    except (OSError, ValueError, LookupError, OverflowError) as error:
        raise BundleError(f"{path}: not an ONNX file that can be read ({error}); export it again") from None


def read_onnx(path: Path) -> OnnxFile:
    """Read inputs, outputs, opset and the places of the weights; the weights themselves are skipped.

    Raises:
        BundleError: it is no ONNX file, or its weights are to be read from outside of its folder.
    """
    with open_model(path) as model:
        (graph,) = model.messages(GRAPH)
        opsets = {imported.text(1): imported.number(2) for imported in model.messages(_OPSET_IMPORT)}
        spec = GraphSpec(path.parent.name, _tensors(graph, _INPUT), _tensors(graph, _OUTPUT))
        external = [tensor for tensor in graph.messages(INITIALIZER) if tensor.messages(EXTERNAL_DATA)]
        entries = (entry for tensor in external for entry in tensor.messages(EXTERNAL_DATA))
        data = {entry.text(2) for entry in entries if entry.text(1) == "location"}
        weights = sum(math.prod(tensor.numbers(_DIMS)) for tensor in external)
        opset = opsets[""]
    for name in data:
        _beside(path, name)
    return OnnxFile(opset, spec, tuple(sorted(data)), weights)


def _beside(path: File, name: str) -> File:
    """The file of weights that the ONNX file `path` calls `name`."""
    if PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
        raise BundleError(f"{path}: weights in {name!r}, which is outside of its folder; do not use this file")
    return path.parent / name


def map_weights(path: File) -> dict[str, Array]:
    """The weights in other files, of types that NumPy has, as they lie there: (out, in, height, width) if `TURNED`.

    Raises:
        BundleError: it is no ONNX file, or its weights are not where it says, or outside of its folder.
    """
    files: dict[str, Array] = {}
    with open_model(path) as model:
        (graph,) = model.messages(GRAPH)
        tensors = [t for t in graph.messages(INITIALIZER) if t.messages(EXTERNAL_DATA)]
        return {t.text(_NAME): _mapped(t, path, files) for t in tensors if t.number(_DATA_TYPE) in _DTYPES}


def _mapped(tensor: Message, path: File, files: dict[str, Array]) -> Array:
    """`files` are those that are mapped, by name."""
    place = {entry.text(1): entry.text(2) for entry in tensor.messages(EXTERNAL_DATA)}
    dtype, shape, name = _DTYPES[tensor.number(_DATA_TYPE)], tensor.numbers(_DIMS), place["location"]
    if tensor.text(_NAME).endswith(TURNED):
        out, height, width, channels = shape
        shape = [out, channels, height, width]
    if name not in files:
        file = _beside(path, name)
        files[name] = np.frombuffer(file.view, np.uint8) if isinstance(file, Packed) else np.memmap(file, mode="r")
    offset = int(place.get("offset", "0"))
    content = files[name][offset : offset + math.prod(shape) * np.dtype(dtype).itemsize]
    return content.view(dtype).reshape(shape)


def whole(name: str, weight: Array) -> Array:
    """A weight of `map_weights` as the graph declares it, its numbers as whole numbers; what is `TURNED` is a view.

    NumPy copies float16 as whole numbers 2.7 times as fast: 2.5 GB a second on one core.
    """
    numbers = weight.view(f"u{weight.itemsize}")
    return numbers.transpose(0, 2, 3, 1) if name.endswith(TURNED) else numbers


def digests(path: Path, known: Mapping[Path, str]) -> list[str]:
    """SHA-256 of the ONNX file and of each that its weights are in; those in `known` are not read."""
    files = [path, *(path.parent / name for name in read_onnx(path).data)]
    return [known.get(file) or sha256_of(file) for file in files]


def _tensors(graph: Message, number: int) -> tuple[TensorSpec, ...]:
    return tuple(_tensor(info) for info in graph.messages(number))


def _tensor(info: Message) -> TensorSpec:
    ((kind,),) = [described.messages(1) for described in info.messages(2)]
    name, element = info.text(1), kind.number(1)
    if element not in _DTYPES:
        raise ValueError(f"{name} has element type {element}")
    dimensions = [dimension for shape in kind.messages(2) for dimension in shape.messages(1)]
    sizes = (d.number(1) or d.text(2) or f"{name}.{i}" for i, d in enumerate(dimensions))
    return TensorSpec(name, _DTYPES[element], tuple(sizes))
