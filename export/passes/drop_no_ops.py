"""Nodes that return their input are left out."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from edgediffusion.engines.spec import Array

from .graph import attribute, constants, element_types, is_scalar, outputs, rebuild

_NEUTRAL = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}


def drop_no_ops(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop Identity, Cast to the same type, Concat of one value, and arithmetic with a neutral scalar on the right."""
    values, types, fixed = constants(model), element_types(model), outputs(model)
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        if node.output[0] not in fixed and _is_no_op(node, values, types):
            renamed[node.output[0]] = renamed.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    return rebuild(model, kept, renamed=renamed)


def _is_no_op(node: onnx.NodeProto, values: Mapping[str, Array], types: Mapping[str, int]) -> bool:
    match node.op_type:
        case "Identity":
            return True
        case "Cast":
            return attribute(node, "to") == types[node.input[0]]
        case "Concat":
            return len(node.input) == 1
        case "Mul" | "Div" | "Add" | "Sub":
            return is_scalar(values.get(node.input[1]), _NEUTRAL[node.op_type])
    return False
