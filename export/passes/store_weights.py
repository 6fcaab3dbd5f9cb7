"""Weights are read from the safetensors file beside the graph, and widened where they are stored in fewer bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx
from onnx import StringStringEntryProto, TensorProto, helper

from ..weights import SCALE, StoredTensor
from .graph import before_use, external, rebuild

_TYPES = {
    "F32": TensorProto.FLOAT,
    "F16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "I8": TensorProto.INT8,
}
_PRODUCTS = {"Conv", "Gemm", "MatMul"}


def store_weights(model: onnx.ModelProto, stored: Mapping[str, StoredTensor]) -> onnx.ModelProto:
    """Make each initializer named in `stored` external data of that file, in the folder of the graph.

    One whose stored type is not the graph's is followed by a Cast, which backends fold when they load the graph, or by
    a DequantizeLinear with the scales that are stored beside it (`weights.quantize`).
    """
    renamed, widened, initializers = {}, [], []
    for initializer in model.graph.initializer:
        name = initializer.name
        if name not in stored:
            initializers.append(initializer)
            continue
        initializers.append(_external(name, stored[name]))
        if stored[name].dtype == "I8":
            renamed[name], scales = f"{name}/dequantized", name + SCALE
            initializers.append(_external(scales, stored[scales]))
            widened.append(helper.make_node("DequantizeLinear", [name, scales], [renamed[name]], renamed[name], axis=0))
        elif initializers[-1].data_type != initializer.data_type:
            renamed[name] = f"{name}/cast"
            widened.append(helper.make_node("Cast", [name], [renamed[name]], renamed[name], to=initializer.data_type))
    result = rebuild(model, model.graph.node, initializers, renamed)
    return rebuild(result, before_use(widened, result.graph.node))


def matrices(model: onnx.ModelProto) -> set[str]:
    """The weights that are only ever multiplied with: second input of Conv, Gemm or MatMul, transposed or not."""
    weights, used, multiplied = external(model), Counter[str](), Counter[str]()
    origin = {name: name for name in weights}
    for node in model.graph.node:
        if node.op_type == "Transpose" and node.input[0] in weights:
            origin[node.output[0]] = node.input[0]
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in origin and not (name in weights and node.output[0] in origin):
                used[origin[name]] += 1
                multiplied[origin[name]] += i == 1 and node.op_type in _PRODUCTS
    return {name for name in used if used[name] == multiplied[name]}


def _external(name: str, stored: StoredTensor) -> TensorProto:
    place = {"location": stored.file.name, "offset": str(stored.offset), "length": str(stored.length)}
    return TensorProto(
        name=name,
        data_type=_TYPES[stored.dtype],
        dims=stored.shape,
        data_location=TensorProto.EXTERNAL,
        external_data=[StringStringEntryProto(key=key, value=value) for key, value in place.items()],
    )
