"""What no output depends on is left out."""

from __future__ import annotations

import onnx

from .graph import outputs, rebuild


def drop_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop nodes and initializers that reach no output of the graph."""
    needed = outputs(model)
    kept = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return rebuild(model, reversed(kept), [t for t in model.graph.initializer if t.name in needed])
