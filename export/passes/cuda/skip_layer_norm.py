"""A layer normalisation of a sum becomes SkipLayerNormalization, which gives the sum too."""

from __future__ import annotations

import onnx

from ..graph import attribute
from .rewriter import Rewriter, fused, rewritten


def fuse_skip_layer_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fuse norm(x + bias + skip) where the bias of the linear layer before comes with it, else norm(x + skip)."""
    return rewritten(model, "LayerNormalization", _fuse)


def _fuse(graph: Rewriter, norm: onnx.NodeProto) -> None:
    total = graph.maker(norm.input[0], "Add")
    if total is None or graph.initializers.keys() & total.input:
        return
    old = [total, norm]
    x, skip = total.input
    channels, bias = graph.initializers.get(norm.input[1]), list[str]()
    for branch, other in ((x, skip), (skip, x)):
        linear = graph.maker(branch, "Add") if len(graph.readers(branch)) == 1 else None
        if linear is not None and graph.initializers.get(linear.input[1], ()) == channels:
            x, skip, bias = linear.input[0], other, [linear.input[1]]
            old.append(linear)
            break
    new = fused(
        "SkipLayerNormalization",
        [x, skip, *norm.input[1:3], *bias],
        [norm.output[0], "", "", total.output[0]],
        epsilon=attribute(norm, "epsilon"),
    )
    graph.replace(old, [new])
