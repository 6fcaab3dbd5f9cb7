"""The dialect of ONNX Runtime's CUDA provider: a portable graph in half precision with that provider's fused operators.

Each pass turns one pattern into one operator of the domain com.microsoft, whose CUDA kernel does in one launch what the
portable operators do in several; what a pass does not recognise it leaves alone. To add one: a module, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from ..counted import apply_counted
from .bias_split_gelu import fuse_bias_split_gelu
from .channels_last import to_channels_last
from .fused_mat_mul import fuse_mat_mul
from .group_norm import fuse_group_norm
from .joined_layers import join_layers
from .multi_head_attention import fuse_multi_head_attention
from .skip_group_norm import fuse_skip_group_norm
from .skip_layer_norm import fuse_skip_layer_norm
from .wider_kernels import widen_kernels

# The operator that a pass makes, and the pass; the later ones build on what the earlier ones made.
PASSES: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "MultiHeadAttention": fuse_multi_head_attention,
    "GroupNorm": fuse_group_norm,
    "Gather": widen_kernels,
    "NhwcConv": to_channels_last,
    "BiasSplitGelu": fuse_bias_split_gelu,
    "SkipLayerNormalization": fuse_skip_layer_norm,
    "SkipGroupNorm": fuse_skip_group_norm,
    "FusedMatMul": fuse_mat_mul,
    "Split": join_layers,
}


def to_cuda_dialect(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """`model` for the CUDA provider, and how many places each pass of `PASSES` changed."""
    return apply_counted(model, PASSES)


__all__ = ["PASSES", "to_cuda_dialect"]
