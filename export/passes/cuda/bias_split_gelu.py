"""The gated feed-forward (GEGLU, arXiv:2002.05202) with the bias before it becomes BiasSplitGelu."""

from __future__ import annotations

import onnx

from .rewriter import Rewriter, fused, rewritten

WIDTHS = (1280, 2560, 5120)  # of a half, for which there are kernels
GELU = ("Div", "Erf", "Add", "Mul", "Mul", "Mul")


def fuse_bias_split_gelu(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fuse left * gelu(right) of the halves of (x + bias), where a half is as wide as one of `WIDTHS`."""
    return rewritten(model, "Split", _fuse)


def _fuse(graph: Rewriter, split: onnx.NodeProto) -> None:
    biased = graph.maker(split.input[0], "Add")
    if biased is None or len(split.output) != 2 or len(graph.readers(biased.output[0])) != 1:
        return
    left, right = split.output
    scaled = [node for node in graph.readers(right) if node.op_type == "Div"]
    if len(scaled) != 1 or graph.initializers.get(biased.input[1]) not in {(2 * width,) for width in WIDTHS}:
        return
    gelu = [scaled[0], *graph.chain(scaled[0].output[0], *GELU[1:])]
    if [node.op_type for node in gelu] != list(GELU) or right not in gelu[-3].input or left not in gelu[-1].input:
        return
    graph.replace([biased, split, *gelu], [fused("BiasSplitGelu", biased.input, gelu[-1].output)])
