"""Weights are read from the safetensors file beside the graph, and cast where they are stored in half precision."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import StringStringEntryProto, TensorProto, helper

from ..weights import StoredTensor
from .graph import rebuild

_TYPES = {"F32": TensorProto.FLOAT, "F16": TensorProto.FLOAT16, "BF16": TensorProto.BFLOAT16}


def store_weights(model: onnx.ModelProto, stored: Mapping[str, StoredTensor]) -> onnx.ModelProto:
    """Make each initializer named in `stored` external data of that file, in the folder of the graph.

    One whose stored type is not the graph's is followed by a Cast, which backends fold when they load the graph.
    """
    renamed, casts, initializers = {}, [], []
    for initializer in model.graph.initializer:
        if initializer.name not in stored:
            initializers.append(initializer)
            continue
        tensor = _external(initializer.name, stored[initializer.name])
        initializers.append(tensor)
        if tensor.data_type != initializer.data_type:
            renamed[tensor.name] = f"{tensor.name}/cast"
            casts.append(
                helper.make_node(
                    "Cast", [tensor.name], [renamed[tensor.name]], renamed[tensor.name], to=initializer.data_type
                )
            )
    result = rebuild(model, model.graph.node, initializers, renamed)
    nodes = [*casts, *result.graph.node]
    return rebuild(result, nodes)


def _external(name: str, stored: StoredTensor) -> TensorProto:
    place = {"location": stored.file.name, "offset": str(stored.offset), "length": str(stored.length)}
    return TensorProto(
        name=name,
        data_type=_TYPES[stored.dtype],
        dims=stored.shape,
        data_location=TensorProto.EXTERNAL,
        external_data=[StringStringEntryProto(key=key, value=value) for key, value in place.items()],
    )
