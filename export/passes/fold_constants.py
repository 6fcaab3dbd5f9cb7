"""Everything that depends on neither inputs nor weights is computed now."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgediffusion.engines.spec import Array

from .graph import constants, outputs, rebuild


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace Constant nodes, and nodes whose inputs are all constants, by initializers."""
    known = set(constants(model))
    folded, kept = [], []
    for node in model.graph.node:
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


def _evaluate(model: onnx.ModelProto, nodes: list[onnx.NodeProto], wanted: list[str]) -> list[Array]:
    if not wanted:
        return []
    values = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in wanted]
    inline = [t for t in model.graph.initializer if t.name in constants(model)]
    graph = helper.make_graph(nodes, "constants", [], values, inline)
    constants_only = helper.make_model(graph, opset_imports=model.opset_import)
    return list(ReferenceEvaluator(constants_only).run(None, {}))
