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
    """`model` with the inputs (1, width) of layers whose results are added to pictures repeated to (batch, width)."""
    graph = Rewriter(model)
    layers = {
        layer.output[0]: layer
        for unsqueeze in graph.of_type("Unsqueeze")
        if (layer := graph.maker(unsqueeze.input[0], "Gemm")) is not None and known.get(layer.output[0], (0,))[0] == 1
    }
    if not layers:
        return model
    batch, one, shape = (f"repeated/{name}" for name in ("batch", "one", "shape"))
    new = [
        helper.make_node("Shape", [model.graph.input[0].name], [batch], batch, start=0, end=1),
        helper.make_node("Concat", [batch, one], [shape], shape, axis=0),
    ]
    for value in dict.fromkeys(layer.input[0] for layer in layers.values()):
        new.append(helper.make_node("Expand", [value, shape], [f"{value}/repeated"], f"{value}/repeated"))
    for layer in layers.values():
        layer.input[0] = f"{layer.input[0]}/repeated"
    graph.replace([], new)
    result = graph.result()
    constant = numpy_helper.from_array(np.ones(1, np.int64), one)
    return rebuild(result, result.graph.node, [*result.graph.initializer, constant])
