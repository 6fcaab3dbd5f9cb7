"""Nodes that return their input are left out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from edgediffusion.engines.spec import Array

from .graph import Dims, attribute, constants, element_types, is_scalar, outputs, rebuild, shapes

_END = np.iinfo(np.int64).max
_NEUTRAL = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}


def drop_no_ops(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop Identity, Cast to the same type, Concat of one value, arithmetic with a neutral scalar on the right.

    And Reshape and Expand to the shape that is there, Transpose that keeps the order, Slice that takes everything.
    """
    values, types, fixed, known = constants(model), element_types(model), outputs(model), shapes(model)
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        if node.output[0] not in fixed and _is_no_op(node, values, types, known):
            renamed[node.output[0]] = renamed.get(node.input[0], node.input[0])
        else:
            kept.append(node)
    return rebuild(model, kept, renamed=renamed)


def _is_no_op(
    node: onnx.NodeProto, values: Mapping[str, Array], types: Mapping[str, int], known: Mapping[str, Dims]
) -> bool:
    match node.op_type:
        case "Identity":
            return True
        case "Cast":
            return attribute(node, "to") == types[node.input[0]]
        case "Concat":
            return len(node.input) == 1
        case "Mul" | "Div" | "Add" | "Sub":
            return is_scalar(values.get(node.input[1]), _NEUTRAL[node.op_type])
        case "Reshape" | "Expand":
            return node.output[0] in known and known[node.output[0]] == known.get(node.input[0])
        case "Transpose":
            perm = attribute(node, "perm")
            return isinstance(perm, list) and perm == sorted(perm)
        case "Slice":
            start, end, *steps = (values.get(name) for name in (*node.input[1:3], *node.input[4:]))
            return _all_equal(start, 0) and _all_equal(end, _END) and all(_all_equal(step, 1) for step in steps)
    return False


def _all_equal(array: Array | None, value: int) -> bool:
    return array is not None and bool(np.all(array == value))
