"""The same operation on the same values is done once."""

from __future__ import annotations

import onnx

from .graph import constants, outputs, rebuild


def merge_equal(model: onnx.ModelProto) -> onnx.ModelProto:
    """Merge constants of equal value, and nodes of equal type, inputs and attributes."""
    inline, fixed = constants(model), outputs(model)
    first: dict[object, list[str]] = {}
    renamed: dict[str, str] = {}
    initializers, nodes = [], []
    for tensor in model.graph.initializer:
        value = inline.get(tensor.name)
        key: object = tensor.name if value is None else (value.dtype, value.shape, value.tobytes())
        same = first.setdefault(key, [tensor.name])
        if same == [tensor.name]:
            initializers.append(tensor)
        renamed[tensor.name] = same[0]
    for node in model.graph.node:
        inputs = tuple(renamed.get(name, name) for name in node.input)
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        key = (node.domain, node.op_type, inputs, tuple(attributes), len(node.output))
        same = first.setdefault(key, list(node.output))
        if same == list(node.output) or fixed.intersection(node.output):
            nodes.append(node)
        else:
            renamed.update(zip(node.output, same, strict=True))
    return rebuild(model, nodes, initializers, renamed)
