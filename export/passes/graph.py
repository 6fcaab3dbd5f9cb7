"""What the passes share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import uses_external_data

from edgediffusion.engines.spec import Array

# Operators that put values elsewhere and compute none: exact in every type.
MOVES = frozenset(
    (
        *("Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Reshape", "Shape", "Slice", "Split"),
        *("Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)


def rebuild(
    model: onnx.ModelProto,
    nodes: Iterable[onnx.NodeProto],
    initializers: Iterable[onnx.TensorProto] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """`model` with these nodes and initializers, where each input in `renamed` is replaced."""
    names = {} if renamed is None else renamed
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in nodes:
        added = result.graph.node.add()
        added.CopyFrom(node)
        added.input[:] = [names.get(name, name) for name in node.input]
    if initializers is not None:
        kept = [copy_of(tensor) for tensor in initializers]
        del result.graph.initializer[:]
        result.graph.initializer.extend(kept)
    return result


def before_use(makers: Iterable[onnx.NodeProto], nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """`nodes`, and each of `makers` before the first of them that takes its output.

    A runtime that keeps this order holds one widened weight at a time, not all of them.
    """
    waiting = {name: maker for maker in makers for name in maker.output}
    result = []
    for node in nodes:
        result += [waiting.pop(name) for name in dict.fromkeys(node.input) if name in waiting]
        result.append(node)
    return result


def copy_of(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """A copy of `tensor`."""
    result = onnx.TensorProto()
    result.CopyFrom(tensor)
    return result


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    """The initializers that are in the graph itself: everything but weights."""
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if not uses_external_data(t)}


def outputs(model: onnx.ModelProto) -> set[str]:
    """The names of the graph's outputs, which no pass may change."""
    return {value.name for value in model.graph.output}


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The TensorProto.DataType of every value that shape inference knows."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        types[value.name] = value.type.tensor_type.elem_type
    return types


Dims = tuple[int | str, ...]


def shapes(model: onnx.ModelProto) -> dict[str, Dims]:
    """The shapes that the exporter noted and shape inference adds.

    A string is a free dimension, equal wherever it recurs.
    ."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found: dict[str, Dims] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        # torch notes a size that it has computed, such as 6 * batch * 8 // batch, as "48".
        named = [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]
        dims = tuple(int(dim) if isinstance(dim, str) and dim.isdecimal() else dim for dim in named)
        if tensor.HasField("shape") and all(dim.WhichOneof("value") for dim in tensor.shape.dim):
            found[value.name] = dims
    return found


def attribute(node: onnx.NodeProto, name: str) -> object:
    """The value of an attribute; None where `node` has none of this name."""
    found = [onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name]
    return found[0] if found else None


def is_scalar(array: Array | None, value: float) -> bool:
    """Whether `array` has no dimensions and equals `value`."""
    return array is not None and array.ndim == 0 and bool(np.equal(array, value))


def external(model: onnx.ModelProto) -> set[str]:
    """The names of the weights: initializers whose data lies in another file."""
    return {tensor.name for tensor in model.graph.initializer if uses_external_data(tensor)}


def float_values(model: onnx.ModelProto) -> list[str]:
    """The names of the float32 values that nodes make, in order."""
    types = element_types(model)
    return [name for node in model.graph.node for name in node.output if types.get(name) == TensorProto.FLOAT]


def float_weights(model: onnx.ModelProto) -> set[str]:
    """The names of the weights that are stored in float32."""
    return {t.name for t in model.graph.initializer if uses_external_data(t) and t.data_type == TensorProto.FLOAT}
