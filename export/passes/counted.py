"""The passes of a dialect, and what each has made."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx

from .drop_unused import drop_unused


def apply_counted(
    model: onnx.ModelProto, passes: Mapping[str, Callable[[onnx.ModelProto], onnx.ModelProto]]
) -> tuple[onnx.ModelProto, dict[str, int]]:
    """`model` after `passes`, each by the operator that it makes, and how many of these each has made."""
    changed = {}
    for op_type, graph_pass in passes.items():
        before = _count(model, op_type)
        model = graph_pass(model)
        changed[op_type] = _count(model, op_type) - before
    return drop_unused(model), changed


def _count(model: onnx.ModelProto, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph.node)
