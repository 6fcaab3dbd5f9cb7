"""A picture is not padded before a convolution, where a wider kernel has the same result."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgediffusion.engines.spec import Array

from ..graph import attribute, is_scalar, rebuild
from .rewriter import Rewriter, with_attributes

BELOW_AND_RIGHT = [0, 0, 0, 0, 0, 0, 1, 1]  # what a VAE's encoder pads a picture by before it halves it
SHAPE = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1}
ROW_AND_COLUMN = np.pad(np.arange(1, 10).reshape(3, 3), ((1, 0), (1, 0)))  # of a kernel of nine after a zero


def widen_kernels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Kernels of 3 x 3 in steps of 2 over a picture padded below and on the right become 4 x 4, padded all around.

    Their first row and column is zero. cuDNN pads on both sides alike only, and the provider's Pad took two thirds of
    the time of a VAE's encoder. The kernel is made when the graph is loaded, which folds it.
    """
    graph, new = Rewriter(model), list[onnx.TensorProto]()
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for pad in graph.of_type("Pad"):
        conv = graph.only_reader(pad.output[0], "Conv")
        if conv is None or len(pad.input) < 3:
            continue
        pads, value = (graph.constant(name) for name in pad.input[1:3])
        if pads is None or pads.tolist() != BELOW_AND_RIGHT or not is_scalar(value, 0):
            continue
        weight = conv.input[1]
        if weight in weights and all(attribute(conv, name) == wanted for name, wanted in SHAPE.items()):
            kernel = f"{weight}/wider"
            nodes, constants = _wider(weights[weight], kernel)
            new += constants
            wide = helper.make_node(
                "Conv",
                [pad.input[0], kernel, *conv.input[2:]],
                conv.output,
                conv.name,
                kernel_shape=[4, 4],
                pads=[1, 1, 1, 1],
            )
            replaced = with_attributes(wide, conv, without=["kernel_shape", "pads"])
            graph.replace([pad, conv], [*nodes, replaced])
    result = graph.result()
    return rebuild(result, result.graph.node, [*result.graph.initializer, *new])


def _wider(weight: onnx.TensorProto, kernel: str) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """What makes `kernel` of `weight`: nodes and their constants."""
    constants, shape = list[onnx.TensorProto](), tuple(weight.dims[:2])

    def constant(name: str, values: Array) -> str:
        constants.append(numpy_helper.from_array(values, f"{kernel}/{name}"))
        return constants[-1].name

    def node(op_type: str, inputs: list[str], result: str, **attributes: Any) -> onnx.NodeProto:
        made: onnx.NodeProto = helper.make_node(op_type, inputs, [result], result, **attributes)
        return made

    flat, zeros, ten, taken = (f"{kernel}/{name}" for name in ("flat", "zeros", "ten", "taken"))
    zero = helper.make_tensor("", weight.data_type, [1], [0.0])
    nodes = [
        node("Reshape", [weight.name, constant("nine", np.array([*shape, 9]))], flat),
        node("ConstantOfShape", [constant("one", np.array([*shape, 1]))], zeros, value=zero),
        node("Concat", [zeros, flat], ten, axis=2),
        node("Gather", [ten, constant("places", ROW_AND_COLUMN.reshape(-1))], taken, axis=2),
        node("Reshape", [taken, constant("shape", np.array([*shape, 4, 4]))], kernel),
    ]
    return nodes, constants
