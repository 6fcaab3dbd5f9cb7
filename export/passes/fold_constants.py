"""Everything that depends on neither inputs nor weights is computed now."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgediffusion.engines.spec import Array

from .graph import Dims, attribute, constants, outputs, rebuild, shapes


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace Constant nodes, and nodes whose inputs are all constants, by initializers.

    The shape of a value is a constant where none of its dimensions is free, whatever the value.
    """
    known, sizes = set(constants(model)), shapes(model)
    folded, kept = [], []
    for node in model.graph.node:
        if node.op_type == "Shape":
            node = _measured(node, sizes.get(node.input[0], ("unknown",)))
        if known.issuperset(node.input) and not outputs(model).intersection(node.output):
            known.update(node.output)
            folded.append(node)
        else:
            kept.append(node)
    used = {name for node in kept for name in node.input}
    wanted = [name for node in folded for name in node.output if name in used]
    values = zip(wanted, _evaluate(model, folded, wanted), strict=True)
    new = [numpy_helper.from_array(value, name) for name, value in values]
    return rebuild(model, kept, [*model.graph.initializer, *new])


def _measured(shape: onnx.NodeProto, dims: Dims) -> onnx.NodeProto:
    """What `shape` says, if it is of numbers, as a Constant."""
    limits: Any = (attribute(shape, "start"), attribute(shape, "end"))
    numbers = dims[slice(*limits)]
    if not all(isinstance(dim, int) for dim in numbers):
        return shape
    return helper.make_node("Constant", [], shape.output, value_ints=numbers)


def _evaluate(model: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str]) -> list[Array]:
    if not wanted:
        return []
    values = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in wanted]
    inline = [t for t in model.graph.initializer if t.name in constants(model)]
    graph = helper.make_graph(nodes, "constants", [], values, inline)
    constants_only = helper.make_model(graph, opset_imports=model.opset_import)
    return list(ReferenceEvaluator(constants_only).run(None, {}))
