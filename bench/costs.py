"""What a graph costs at one size: FLOPs and bytes, counted from its ONNX file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgediffusion.engines.errors import EdgeDiffusionError
from edgediffusion.engines.spec import GraphSpec

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one call.

    `flops` are those of matrix products and convolutions, two for each multiplication with its addition; what works
    element by element, normalizes or moves is not counted. `bytes` are the weights as they are stored, the inputs and
    the outputs: what has to move even where everything between stays on the chip.
    """

    flops: int
    bytes: int


def count(model: Path, spec: GraphSpec, sizes: Mapping[str, int]) -> Cost:
    """The cost of the graph in the file `model`, with its free dimensions at `sizes`.

    Raises:
        EdgeDiffusionError: the shape of an operator that is counted does not follow from those sizes.
    """
    loaded = onnx.load(model, load_external_data=False)
    fixed = spec.fixed(sizes)
    for value, tensor in zip(loaded.graph.input, fixed.inputs, strict=True):
        for dimension, size in zip(value.type.tensor_type.shape.dim, tensor.shape, strict=True):
            dimension.dim_value = int(size)
    for output in loaded.graph.output:
        output.type.tensor_type.ClearField("shape")
    shapes = _shapes(onnx.shape_inference.infer_shapes(loaded, data_prop=True).graph)
    flops = 0
    for node in loaded.graph.node:
        if node.op_type in _FLOPS:
            try:
                operands = [shapes[name] for name in node.input[:2]]
                flops += _FLOPS[node.op_type](node, operands, shapes[node.output[0]])
            except KeyError as error:
                raise EdgeDiffusionError(
                    f"{model}: the shape of {error} is not known; measure without roofline"
                ) from None
    moved = sum(_bytes(t.data_type, t.dims) for t in loaded.graph.initializer)
    moved += sum(
        _bytes(v.type.tensor_type.elem_type, t.shape) for v, t in zip(loaded.graph.input, fixed.inputs, strict=True)
    )
    moved += sum(_bytes(v.type.tensor_type.elem_type, shapes[v.name]) for v in loaded.graph.output)
    return Cost(flops=flops, bytes=moved)


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """Of every tensor for which all dimensions are known."""
    found: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dimensions):
            found[value.name] = tuple(d.dim_value for d in dimensions)
    return found


def _bytes(element: int, shape: Sequence[int | str]) -> int:
    return math.prod(map(int, shape)) * int(onnx.helper.tensor_dtype_to_np_dtype(element).itemsize)


def _conv(node: onnx.NodeProto, operands: Sequence[Shape], output: Shape) -> int:
    """Each output is a sum over the kernel and the channels of its group: the weight's shape without its first axis."""
    return 2 * math.prod(output) * math.prod(operands[1][1:])


def _matmul(node: onnx.NodeProto, operands: Sequence[Shape], output: Shape) -> int:
    return 2 * math.prod(output) * operands[0][-1]


def _gemm(node: onnx.NodeProto, operands: Sequence[Shape], output: Shape) -> int:
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return 2 * math.prod(output) * operands[0][0 if transposed else -1]


_FLOPS: dict[str, Callable[[onnx.NodeProto, Sequence[Shape], Shape], int]] = {
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
}
