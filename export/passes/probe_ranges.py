"""How large the values inside a graph become."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .graph import rebuild

RANGES = "ranges"
_MASK = 1e30  # what is larger is there to vanish in a softmax (-3.4e38, minus infinity)


def probe_ranges(model: onnx.ModelProto, values: Sequence[str]) -> onnx.ModelProto:
    """`model` with an output `RANGES` more, (len(values),) float32: the largest |x| of each of its float32 `values`.

    Infinity and other masks do not count. Opset 18.
    """
    probed, nodes = set(values), list[onnx.NodeProto]()
    for node in model.graph.node:  # each value is measured at once, so that none has to wait for the end
        nodes += [node, *(probe for name in node.output if name in probed for probe in _probe(name))]
    nodes.append(helper.make_node("Concat", [f"{name}/range" for name in values], [RANGES], axis=0))
    new = {"/mask": np.float32(_MASK), "/zero": np.float32(0), "/one": np.array([1], np.int64)}
    initializers = [*model.graph.initializer, *(numpy_helper.from_array(np.asarray(v), k) for k, v in new.items())]
    result = rebuild(model, nodes, initializers)
    result.graph.output.append(helper.make_tensor_value_info(RANGES, TensorProto.FLOAT, [len(values)]))
    return result


def _probe(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Abs", [name], [f"{name}/Abs"]),
        helper.make_node("Less", [f"{name}/Abs", "/mask"], [f"{name}/Less"]),
        helper.make_node("Where", [f"{name}/Less", f"{name}/Abs", "/zero"], [f"{name}/Where"]),
        helper.make_node("ReduceMax", [f"{name}/Where"], [f"{name}/max"], keepdims=0),
        helper.make_node("Reshape", [f"{name}/max", "/one"], [f"{name}/range"]),
    ]
