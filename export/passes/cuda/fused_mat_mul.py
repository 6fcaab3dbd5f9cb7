"""A product with a transposed weight becomes FusedMatMul, which reads the weight as torch has it.

ONNX Runtime transposes weights anew, on the CPU, each time that a session is made: 2 s for a gigabyte.
"""

from __future__ import annotations

import onnx

from .rewriter import Rewriter, fused, permutation, rewritten


def fuse_mat_mul(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fuse x @ transpose(weight) of a weight with two dimensions."""
    return rewritten(model, "MatMul", _fuse)


def _fuse(graph: Rewriter, product: onnx.NodeProto) -> None:
    turned = graph.maker(product.input[1], "Transpose")
    if turned is None or turned.input[0] not in graph.initializers or permutation(turned) != [1, 0]:
        return
    graph.replace([product], [fused("FusedMatMul", [product.input[0], turned.input[0]], product.output, transB=1)])
