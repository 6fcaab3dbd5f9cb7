"""Graph passes: a ModelProto in, a new one that computes the same out. To add one: a module, and a line here."""

from __future__ import annotations

import onnx

from .drop_no_ops import drop_no_ops
from .drop_unused import drop_unused
from .fold_constants import fold_constants
from .merge_equal import merge_equal
from .resolve_types import resolve_types
from .store_weights import store_weights
from .strip import strip

PASSES = (resolve_types, fold_constants, drop_no_ops, merge_equal, drop_unused)


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Apply `PASSES` until none finds anything more, then `strip`. Weights stay as they are."""
    before = -1
    while before != len(model.graph.node):
        before = len(model.graph.node)
        for graph_pass in PASSES:
            model = graph_pass(model)
    return strip(model)


__all__ = ["PASSES", "simplify", "store_weights"]
