"""What the exporter notes about itself is left out: stack traces, paths, versions, inferred shapes."""

from __future__ import annotations

import onnx
from onnx import helper

PRODUCER = "edgediffusion"


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Keep names, nodes, inputs, outputs and initializers only, so that a second export gives the same bytes.

    The IR version is the first with the model's opset, 8 with opset 18: every ONNX Runtime since 1.14 reads it.
    """
    graph = helper.make_graph(
        [_bare_node(node) for node in model.graph.node],
        model.graph.name,
        [_bare_value(value) for value in model.graph.input],
        [_bare_value(value) for value in model.graph.output],
        model.graph.initializer,
    )
    version = helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    result: onnx.ModelProto = helper.make_model(
        graph, opset_imports=model.opset_import, producer_name=PRODUCER, ir_version=version
    )
    return result


def _bare_node(node: onnx.NodeProto) -> onnx.NodeProto:
    result = onnx.NodeProto(op_type=node.op_type, name=node.name, domain=node.domain)
    result.input.extend(node.input)
    result.output.extend(node.output)
    result.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
    return result


def _bare_value(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    return onnx.ValueInfoProto(name=value.name, type=value.type)
