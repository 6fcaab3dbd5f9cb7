"""An Expand before operators that broadcast by themselves is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from .graph import Dims, outputs, rebuild, shapes

_BROADCASTING = {"Add", "And", "Div", "Equal", "Max", "Min", "Mul", "Or", "Pow", "Sub", "Where"}
Users = Mapping[str, Sequence[onnx.NodeProto]]


def drop_expands(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the first Expand that nothing needs; the next one is judged by what is left then."""
    known = shapes(model)
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    for expand in model.graph.node:
        if expand.op_type == "Expand" and expand.input[0] in known:
            smaller = _without(expand.output[0], known[expand.input[0]], known, users, outputs(model))
            if smaller is not None:
                nodes = [node for node in model.graph.node if node is not expand]
                result = rebuild(model, nodes, renamed={expand.output[0]: expand.input[0]})
                kept = [value for value in model.graph.value_info if value.name not in smaller]
                del result.graph.value_info[:]
                result.graph.value_info.extend(kept)
                return result
    return model


def _without(name: str, dims: Dims, known: Mapping[str, Dims], users: Users, fixed: set[str]) -> dict[str, Dims] | None:
    """The values that are smaller when `name` has the shape `dims`; None where that changes what is computed."""
    if name in fixed:
        return None
    smaller = {name: dims}
    for node in users.get(name, []):
        operands = [smaller.get(value, known.get(value)) for value in node.input]
        together = _broadcast(operands) if node.op_type in _BROADCASTING else None
        if together is None:
            return None
        if together != known.get(node.output[0]):
            further = _without(node.output[0], together, {**known, **smaller}, users, fixed)
            if further is None:
                return None
            smaller |= further
    return smaller


def _broadcast(operands: Sequence[Dims | None]) -> Dims | None:
    """The shape that operands of these shapes give together; None where that is not known."""
    given = [dims for dims in operands if dims is not None]
    if len(given) < len(operands):
        return None
    rank = max(map(len, given))
    result = []
    for column in zip(*((1,) * (rank - len(dims)) + dims for dims in given), strict=True):
        sizes = list(set(column) - {1})
        if len(sizes) > 1:
            return None
        result.append(sizes[0] if sizes else 1)
    return tuple(result)
