"""A Transpose of a Transpose is one, or none."""

from __future__ import annotations

import onnx
from onnx import helper

from .graph import attribute, rebuild


def merge_transposes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the second of two do the work of both; the first stays for others that read it."""
    made: dict[str, onnx.NodeProto] = {}
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Transpose":
            if (before := made.get(node.input[0])) is not None:
                perm = [_permutation(before)[axis] for axis in _permutation(node)]
                node = helper.make_node("Transpose", before.input, node.output, node.name, perm=perm)
            made[node.output[0]] = node
        nodes.append(node)
    return rebuild(model, nodes)


def _permutation(node: onnx.NodeProto) -> list[int]:
    perm = attribute(node, "perm")
    assert isinstance(perm, list), "the exporter always writes it"
    return perm
