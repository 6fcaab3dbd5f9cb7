"""Attention over heads becomes MultiHeadAttention, which picks a flash, cuDNN or memory-efficient kernel."""

from __future__ import annotations

import onnx

from .rewriter import Rewriter, fused, permutation, rewritten

HEADS_FIRST, KEYS_LAST = [0, 2, 1, 3], [0, 2, 3, 1]


def fuse_multi_head_attention(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fuse softmax(scale query key^T) value, arXiv:1706.03762 eq. 1, with the split into heads around it.

    (batch, tokens, heads, size) is transposed for the product and back after it; the fused kernel reads it as it is. A
    head may have any size: kernels are chosen when the graph runs. Attention with a mask is left alone.
    """
    return rewritten(model, "Softmax", _fuse)


def _fuse(graph: Rewriter, softmax: onnx.NodeProto) -> None:
    product = graph.maker(softmax.input[0], "MatMul")
    scaled = product and graph.maker(product.input[0], "Mul")
    after = graph.chain(softmax.output[0], "MatMul", "Transpose", "Reshape")
    if not (product and scaled and after) or permutation(after[1]) != HEADS_FIRST:
        return
    query = _split(graph, scaled.input[0], HEADS_FIRST)
    key = _split(graph, product.input[1], KEYS_LAST)
    value = _split(graph, after[0].input[1], HEADS_FIRST)
    scale = graph.constant(scaled.input[1])
    if query is None or key is None or value is None or scale is None or scale.size != 1:
        return
    shape = graph.constant(query.input[1])
    if shape is None or shape[2] < 1:  # -1 is for the Reshape to find out
        return
    inputs = [reshape.input[0] for reshape in (query, key, value)]
    new = fused("MultiHeadAttention", inputs, after[2].output, num_heads=int(shape[2]), scale=float(scale.item()))
    graph.replace([scaled, product, softmax, *after], [new])


def _split(graph: Rewriter, value: str, perm: list[int]) -> onnx.NodeProto | None:
    """The Reshape of (batch, tokens, width) into heads, of which `value` is the Transpose by `perm`."""
    transpose = graph.maker(value, "Transpose")
    if transpose is None or permutation(transpose) != perm:
        return None
    return graph.maker(transpose.input[0], "Reshape")
