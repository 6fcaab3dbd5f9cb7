"""No arithmetic on shapes is left: the CUDA provider would put it on the CPU, between kernels that wait for it.

A shape becomes a constant where one dimension at most is free. Elsewhere it is read from a value that has just this
shape, by a Shape that goes straight into the Reshape, Expand or Resize: such an input lies on the host anyway, and the
provider has a kernel for Shape that puts it there. It cannot be done without: what became tokens has to become a
picture of its height and width again, and an upsampled picture as high as the one it joins, if that is of 17 rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .graph import Dims, constants, rebuild, shapes

_INPUTS = {"Reshape": 1, "Expand": 1, "Resize": 3}  # which of them is the shape


def direct_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace computed shapes by constants, or by the Shape of a value that is there already."""
    known, settled = shapes(model), set(constants(model))
    settled |= {node.output[0] for node in model.graph.node if node.op_type == "Shape"}
    earlier = {value.name: known[value.name] for value in model.graph.input}
    nodes: list[onnx.NodeProto] = []
    initializers = list(model.graph.initializer)
    for node in model.graph.node:
        index = _INPUTS.get(node.op_type)
        if index is not None and len(node.input) > index and node.input[index] not in settled:
            wanted = known.get(node.output[0])
            name = f"{node.output[0]}/shape"
            if wanted is not None and (constant := _constant(node, known.get(node.input[0], ()), wanted)) is not None:
                initializers.append(numpy_helper.from_array(np.array(constant, np.int64), name))
                node = _retargeted(node, index, name)
            elif wanted is not None and (read := _shape_of(earlier, _target(node, wanted), name)) is not None:
                nodes.append(read)
                node = _retargeted(node, index, name)
        nodes.append(node)
        earlier |= {name: known[name] for name in node.output if name in known}
    return rebuild(model, nodes, initializers)


def _target(node: onnx.NodeProto, wanted: Dims) -> Dims:
    """What the shape input has to say: Resize is told height and width only."""
    return wanted[2:] if node.op_type == "Resize" else wanted


def _constant(node: onnx.NodeProto, given: Dims, wanted: Dims) -> list[int] | None:
    """The shape as numbers; None where more than one dimension is known at run time only."""
    if node.op_type != "Reshape":
        target = _target(node, wanted)
        return [dim for dim in target if isinstance(dim, int)] if all(isinstance(dim, int) for dim in target) else None
    kept = [isinstance(dim, str) and given[i : i + 1] == (dim,) for i, dim in enumerate(wanted)]
    numbers = [0 if same else -1 if isinstance(dim, str) else dim for same, dim in zip(kept, wanted, strict=True)]
    return numbers if numbers.count(-1) <= 1 else None


def _shape_of(earlier: Mapping[str, Dims], wanted: Dims, name: str) -> onnx.NodeProto | None:
    """A Shape of the latest value that has the dimensions `wanted`, among others maybe."""
    for value, dims in reversed(list(earlier.items())):
        for start in range(len(dims) - len(wanted) + 1):
            if dims[start : start + len(wanted)] == wanted:
                return helper.make_node("Shape", [value], [name], start=start, end=start + len(wanted))
    return None


def _retargeted(node: onnx.NodeProto, index: int, name: str) -> onnx.NodeProto:
    result = onnx.NodeProto()
    result.CopyFrom(node)
    result.input[index] = name
    if node.op_type == "Resize":
        result.attribute.append(helper.make_attribute("axes", [2, 3]))
    attributes = [attribute for attribute in result.attribute if attribute.name != "allowzero"]
    del result.attribute[:]
    result.attribute.extend(attributes)
    return result
