"""A graph while a pass rewrites it: who makes and who reads each value."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import onnx
from onnx import helper

from edgediffusion.engines.spec import Array

from ..graph import attribute, constants, outputs, rebuild

DOMAIN = "com.microsoft"
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # permutations of a picture, as for its channels


class Rewriter:
    """Replaces groups of nodes in a copy of `model`. `initializers` has the shape of each."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(rebuild(model, model.graph.node).graph.node)
        self.constants = constants(model)
        self.initializers = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        self.outputs = outputs(model)
        self.reindex()

    def of_type(self, op_type: str) -> list[onnx.NodeProto]:
        """The nodes of this type, as they stand now."""
        return [node for node in self.nodes if node.op_type == op_type]

    def maker(self, value: str, op_type: str) -> onnx.NodeProto | None:
        """The node that makes `value`, if it is of this type."""
        node = self._makers.get(value)
        return node if node is not None and node.op_type == op_type else None

    def readers(self, value: str) -> list[onnx.NodeProto]:
        """The nodes that take `value`, each once."""
        return self._readers[value]

    def only_reader(self, value: str, op_type: str) -> onnx.NodeProto | None:
        """The node that takes `value`, if it is the only one and of this type, and `value` is no output."""
        readers = self._readers[value]
        alone = len(readers) == 1 and value not in self.outputs and readers[0].op_type == op_type
        return readers[0] if alone else None

    def chain(self, value: str, *op_types: str) -> list[onnx.NodeProto]:
        """The nodes of these types that follow `value` one after the other, each the only reader; else none."""
        found: list[onnx.NodeProto] = []
        for op_type in op_types:
            node = self.only_reader(value, op_type)
            if node is None:
                return []
            found.append(node)
            value = node.output[0]
        return found

    def weight(self, value: str) -> str | None:
        """The initializer that `value` is, or that it is a reshaped form of."""
        while value not in self.initializers:
            node = self.maker(value, "Unsqueeze") or self.maker(value, "Reshape")
            if node is None:
                return None
            value = node.input[0]
        return value

    def constant(self, value: str) -> Array | None:
        """What `value` always is; None where that depends on inputs or weights."""
        return self.constants.get(value)

    def replace(self, old: Iterable[onnx.NodeProto], new: Iterable[onnx.NodeProto]) -> None:
        """Take out `old`, put in `new`."""
        gone = {id(node) for node in old}
        self.nodes = [*(node for node in self.nodes if id(node) not in gone), *new]
        self.reindex()

    def result(self) -> onnx.ModelProto:
        """The rewritten model, its nodes in an order in which they can run."""
        model = rebuild(self.model, self._sorted())
        if DOMAIN not in {opset.domain for opset in model.opset_import}:
            model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        return model

    def _sorted(self) -> Iterator[onnx.NodeProto]:
        self.reindex()
        waiting = {id(node): sum(value in self._makers for value in set(node.input)) for node in self.nodes}
        ready = deque(node for node in self.nodes if not waiting[id(node)])
        while ready:
            node = ready.popleft()
            yield node
            for reader in (reader for value in node.output for reader in self._readers[value]):
                waiting[id(reader)] -= 1
                if not waiting[id(reader)]:
                    ready.append(reader)

    def reindex(self) -> None:
        """Take note of nodes that were changed where they stand."""
        self._makers = {value: node for node in self.nodes for value in node.output if value}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for value in {*node.input} - {""}:  # an optional input that is left out has no name
                self._readers[value].append(node)


def rewritten(
    model: onnx.ModelProto, op_type: str, rewrite: Callable[[Rewriter, onnx.NodeProto], None]
) -> onnx.ModelProto:
    """`model` after `rewrite` has seen each of its nodes of this type."""
    graph = Rewriter(model)
    for node in graph.of_type(op_type):
        rewrite(graph, node)
    return graph.result()


def fused(op_type: str, inputs: Iterable[str], results: Iterable[str], **attributes: Any) -> onnx.NodeProto:
    """A node of the provider's domain, named after its first result."""
    results = list(results)
    node: onnx.NodeProto = helper.make_node(
        op_type, list(inputs), results, f"{results[0]}/{op_type}", domain=DOMAIN, **attributes
    )
    return node


def with_attributes(node: onnx.NodeProto, source: onnx.NodeProto, *, without: Iterable[str] = ()) -> onnx.NodeProto:
    """`node` with the attributes of `source` but those named."""
    node.attribute.extend(entry for entry in source.attribute if entry.name not in without)
    return node


def transpose(value: str, result: str, perm: list[int]) -> onnx.NodeProto:
    """A Transpose of `value`."""
    node: onnx.NodeProto = helper.make_node("Transpose", [value], [result], result, perm=perm)
    return node


def permutation(node: onnx.NodeProto) -> list[int]:
    """Of a Transpose."""
    perm = attribute(node, "perm")
    assert isinstance(perm, list)
    return perm
