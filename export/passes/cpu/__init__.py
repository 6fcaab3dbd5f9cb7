"""The dialect of ONNX Runtime's CPU provider: a portable graph in float32, put as that provider computes it fastest.

To add a pass: a module, and a line here. What was measured of each, and of others that gained nothing, is in
`bench/NOTES.md`.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from ..counted import apply_counted
from ..cuda.fused_mat_mul import fuse_mat_mul
from ..cuda.multi_head_attention import fuse_multi_head_attention
from .halves import split_weights
from .rows import to_rows
from .subpixels import to_subpixels

# What a pass makes, and the pass; the later ones build on what the earlier ones made.
PASSES: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "MultiHeadAttention": fuse_multi_head_attention,
    "Slice": split_weights,
    "Gemm": to_rows,
    "FusedMatMul": fuse_mat_mul,
    "Conv": to_subpixels,
}


def to_cpu_dialect(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """`model`, whose weights are as torch has them, for the CPU provider, and how many operators each pass made."""
    return apply_counted(model, PASSES)


__all__ = ["PASSES", "to_cpu_dialect"]
