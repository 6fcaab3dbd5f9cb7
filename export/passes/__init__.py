"""Graph passes: a ModelProto in, a new one that computes the same out. To add one: a module, and a line here."""

from __future__ import annotations

import onnx

from .direct_shapes import direct_shapes
from .drop_expands import drop_expands
from .drop_no_ops import drop_no_ops
from .drop_unused import drop_unused
from .emulate_half import emulate_half
from .fold_constants import fold_constants
from .merge_equal import merge_equal
from .merge_transposes import merge_transposes
from .probe_ranges import probe_ranges
from .resolve_types import resolve_types
from .store_weights import matrices, store_weights
from .strip import strip
from .to_half import to_half

PASSES = (
    resolve_types,
    fold_constants,
    drop_no_ops,
    drop_expands,
    direct_shapes,
    merge_transposes,
    merge_equal,
    drop_unused,
)


def simplify(model: onnx.ModelProto) -> onnx.ModelProto:
    """Apply `PASSES` until none finds anything more, then `strip`. Weights stay as they are."""
    before = -1
    while before != len(model.graph.node):
        before = len(model.graph.node)
        for graph_pass in PASSES:
            model = graph_pass(model)
    return strip(model)


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Leave out what a pass has made superfluous; constants that are half already are not computed further."""
    return drop_unused(merge_equal(drop_no_ops(model)))


__all__ = ["PASSES", "clean", "emulate_half", "matrices", "probe_ranges", "simplify", "store_weights", "to_half"]
