"""Linear layers that read the same few tokens become one, and its result is split.

A UNet takes keys and values of every cross-attention from the prompt, and a bias of every residual block from the
timestep: dozens of small products that each wait for a launch, where one would do.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..graph import rebuild
from .rewriter import Rewriter

# Queries, keys and values of a self-attention are three of one input, but many tokens: to split them takes longer.
LEAST = 4


def join_layers(model: onnx.ModelProto) -> onnx.ModelProto:
    """Join the FusedMatMul, and the Gemm, of one input with weights (out, in): those are put one below the other."""
    graph, sizes = Rewriter(model), list[onnx.TensorProto]()
    groups = defaultdict[tuple[str, ...], list[onnx.NodeProto]](list)
    for node in (*graph.of_type("FusedMatMul"), *graph.of_type("Gemm")):
        if all(value in graph.initializers for value in node.input[1:]):
            attributes = sorted(str(entry) for entry in node.attribute)
            groups[(node.op_type, node.input[0], str(len(node.input)), *attributes)].append(node)
    for layers in groups.values():
        if len(layers) < LEAST or not any(a.name == "transB" and a.i for a in layers[0].attribute):
            continue
        result = f"{layers[0].output[0]}/joined"
        widths = np.array([graph.initializers[layer.input[1]][0] for layer in layers])
        sizes.append(numpy_helper.from_array(widths, f"{result}/sizes"))
        operands = list(zip(*(layer.input[1:] for layer in layers), strict=True))  # all weights, all biases
        names = [f"{result}/{i}" for i in range(len(operands))]
        joined = onnx.NodeProto()
        joined.CopyFrom(layers[0])
        joined.name = result
        joined.input[:], joined.output[:] = [layers[0].input[0], *names], [result]
        outputs = [layer.output[0] for layer in layers]
        new = [helper.make_node("Concat", of, [n], n, axis=0) for of, n in zip(operands, names, strict=True)]
        split = helper.make_node("Split", [result, f"{result}/sizes"], outputs, f"{result}/split", axis=-1)
        graph.replace(layers, [*new, joined, split])
    result_model = graph.result()
    return rebuild(result_model, result_model.graph.node, [*result_model.graph.initializer, *sizes])
