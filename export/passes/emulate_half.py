"""A half-precision graph, computed in float32: every half value is rounded as it would be stored."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .graph import MOVES, before_use, constants, element_types, external, rebuild
from .to_half import HALVES


def emulate_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """What a GPU computes from `model`: sums within an operator in float32, its result rounded, to infinity too.

    ONNX Runtime's CPU provider cannot be asked: it computes a chain of float16 operators in float32 and rounds nothing
    between them, so that no overflow is seen, and has no kernels for bfloat16. Casts down and up again it does keep.
    """
    kinds = element_types(model)
    types = {name: kind for name, kind in kinds.items() if kind in HALVES.values()}
    inline, stored = constants(model), external(model) & types.keys()
    initializers = [
        numpy_helper.from_array(inline[t.name].astype(np.float32), t.name)
        if t.name in types and t.name in inline
        else t
        for t in model.graph.initializer
    ]
    nodes = [new for node in model.graph.node for new in _emulated(node, types)]
    wide = {name: f"{name}/float" for name in stored}
    casts = [
        helper.make_node("Cast", [name], [wide[name]], wide[name], to=TensorProto.FLOAT) for name in sorted(stored)
    ]
    result = rebuild(model, nodes, initializers, wide)
    return rebuild(result, before_use(casts, result.graph.node))


def _emulated(node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto]:
    """`node` on float32 values, then a Cast down and one up for each of its half outputs."""
    wide = onnx.NodeProto()
    wide.CopyFrom(node)
    for entry in wide.attribute:
        if entry.name == "to" and entry.i in HALVES.values():
            entry.i = TensorProto.FLOAT
        if entry.HasField("t") and entry.t.data_type in HALVES.values():
            entry.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(entry.t).astype(np.float32)))
    nodes = [wide]
    for i, name in enumerate(node.output):
        if name in types and node.op_type not in MOVES:
            exact, rounded = f"{name}/exact", f"{name}/rounded"
            wide.output[i] = exact
            nodes.append(helper.make_node("Cast", [exact], [rounded], rounded, to=types[name]))
            nodes.append(helper.make_node("Cast", [rounded], [name], exact, to=TensorProto.FLOAT))
    return nodes
