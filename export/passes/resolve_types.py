"""CastLike becomes Cast: the type is known, and constants can then be folded."""

from __future__ import annotations

import onnx

from .graph import element_types, rebuild


def resolve_types(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace each CastLike by a Cast to the type of its second input."""
    types = element_types(model)

    def resolved(node: onnx.NodeProto) -> onnx.NodeProto:
        if node.op_type != "CastLike":
            return node
        return onnx.helper.make_node("Cast", node.input[:1], node.output, node.name, to=types[node.input[1]])

    return rebuild(model, map(resolved, model.graph.node))
