"""A group normalisation of a sum becomes SkipGroupNorm, which gives the sum too."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..graph import Dims, rebuild, shapes
from .rewriter import Rewriter, fused, with_attributes


def fuse_skip_group_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fuse norm(x + skip), where skip is a residual, or the embedding of the timestep, the same for every pixel.

    The kernel does not broadcast over the batch, so an embedding that is there once is repeated for each picture,
    before the linear layers that make it.
    """
    graph = Rewriter(_repeated(model, shapes(model)))
    for norm in graph.of_type("GroupNorm"):
        total = graph.maker(norm.input[0], "Add")
        if total is None or graph.initializers.keys() & total.input:
            continue
        x, skip = sorted(total.input, key=lambda value: graph.maker(value, "Unsqueeze") is not None)
        new = fused("SkipGroupNorm", [x, *norm.input[1:3], skip], [norm.output[0], total.output[0]])
        graph.replace([total, norm], [with_attributes(new, norm)])
    return graph.result()


def _repeated(model: onnx.ModelProto, known: Mapping[str, Dims]) -> onnx.ModelProto:
    """`model` with the inputs (1, width) of layers whose results are added to pictures repeated to (batch, width).

    As a column, which a Shape alone can widen: a shape (batch, 1) would have to be put together, on the CPU.
    """
    graph = Rewriter(model)
    layers = {
        layer.output[0]: layer
        for unsqueeze in graph.of_type("Unsqueeze")
        if (layer := graph.maker(unsqueeze.input[0], "Gemm")) is not None and known.get(layer.output[0], (0,))[0] == 1
    }
    if not layers:
        return model
    batch, column = "repeated/batch", "repeated/column"
    new = [helper.make_node("Shape", [model.graph.input[0].name], [batch], batch, start=0, end=1)]
    for value in dict.fromkeys(layer.input[0] for layer in layers.values()):
        upright, wide, repeated = (f"{value}/{step}" for step in ("upright", "wide", "repeated"))
        new += [
            helper.make_node("Reshape", [value, column], [upright], upright),
            helper.make_node("Expand", [upright, batch], [wide], wide),
            helper.make_node("Transpose", [wide], [repeated], repeated, perm=[1, 0]),
        ]
    for layer in layers.values():
        layer.input[0] = f"{layer.input[0]}/repeated"
    graph.replace([], new)
    result = graph.result()
    constant = numpy_helper.from_array(np.array([-1, 1]), column)
    return rebuild(result, result.graph.node, [*result.graph.initializer, constant])
