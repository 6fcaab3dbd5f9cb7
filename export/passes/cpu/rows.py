"""The tokens of all pictures are rows of one matrix, so that a linear layer and its bias are one Gemm."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..cuda.rewriter import Rewriter, permutation, with_attributes
from ..graph import attribute, rebuild, shapes

ELEMENTWISE = frozenset({"Add", "Div", "Erf", "Mul", "Sigmoid"})
RANK = 3  # batch, tokens, width


class _Tokens(NamedTuple):
    """What is known of a value with three dimensions: batch and tokens are those of the value `like`."""

    like: str
    width: int


def to_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """Linear layers with a bias become Gemm, which takes matrices only; what lies between them follows.

    A product of three dimensions leaves its bias to an Add, which reads and writes the result once more.
    """
    return _Rows(model).run()


class _Rows:
    """One run of the pass.

    A value is in the new graph in its `whole` form, or as `rows` under the name noted there, or both.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = Rewriter(model)
        self.turned = {node.output[0]: node.input[0] for node in self.graph.of_type("Transpose")}
        self.sizes = shapes(model)
        self.ranks = _ranks(self.graph)
        self.tokens: dict[str, _Tokens] = {}
        self.whole = {value.name for value in model.graph.input}
        self.rows: dict[str, str] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.new: list[onnx.TensorProto] = []

    def run(self) -> onnx.ModelProto:
        for node in self.graph.nodes:
            layer = self.graph.only_reader(node.output[0], "Add")
            if layer is not None and self._layer(layer) is node:
                continue
            tokens = self._follow(node)
            if tokens is not None:
                self.tokens[node.output[0]] = tokens
            if tokens is None or not self._in_rows(node):
                for value in node.input:
                    self._restore(value)
                self.nodes.append(node)
                self.whole.update(node.output)
        for name in sorted(self.graph.outputs):
            self._restore(name)
        self.graph.nodes = self.nodes
        model = self.graph.result()
        return rebuild(model, model.graph.node, [*model.graph.initializer, *self.new])

    def _layer(self, biased: onnx.NodeProto) -> onnx.NodeProto | None:
        """The product of tokens by a weight that `biased` adds a bias to, if it is one."""
        product = self.graph.maker(biased.input[0], "MatMul")
        if product is None or self.graph.only_reader(product.output[0], "Add") is None:
            return None
        return product if self.ranks.get(biased.input[1]) == 1 and self._product(product) is not None else None

    def _product(self, node: onnx.NodeProto) -> _Tokens | None:
        """The tokens that the MatMul `node` makes by a weight, if it does so."""
        match self.sizes.get(self.turned.get(node.input[1], "")):
            case (int(made), int(taken)):
                return self._like(node.input[0], taken, made)
        return None

    def _like(self, value: str, taken: int, made: int) -> _Tokens | None:
        """Tokens of the width `made`, computed each from one of `value`, of the width `taken`, if those are tokens."""
        if value not in self.tokens and self.ranks.get(value) == RANK:
            self.tokens[value] = _Tokens(value, taken)
        return _Tokens(self.tokens[value].like, made) if value in self.tokens else None

    def _follow(self, node: onnx.NodeProto) -> _Tokens | None:
        """What `node` makes, if it treats each token by itself, or is attention, whose result is like its query."""
        match node.op_type:
            case "MatMul":
                return self._product(node)
            case "LayerNormalization" if attribute(node, "axis") == -1 and node.input[1] in self.graph.initializers:
                (width,) = self.graph.initializers[node.input[1]]
                return self._like(node.input[0], width, width)
            case "MultiHeadAttention" if self.tokens.keys() >= {node.input[0], node.input[2]}:
                query, value = (self.tokens[node.input[i]] for i in (0, 2))
                return _Tokens(query.like, value.width)
            case "Add" if (product := self._layer(node)) is not None:
                return self._product(product)
            case other if other in ELEMENTWISE:
                known = {self.tokens.get(value) for value in node.input if self.ranks.get(value, RANK) > 1}
                return known.pop() if len(known) == 1 else None
        return None

    def _in_rows(self, node: onnx.NodeProto) -> bool:
        """Whether `node`, which makes tokens, was put into the new graph in rows: it can, and some input is so only."""
        product = self._layer(node) if node.op_type == "Add" else None
        if product is not None:
            weight = self.turned[product.input[1]]
            new = helper.make_node(
                "Gemm", [self._to_rows(product.input[0]), weight, node.input[1]], [f"{node.output[0]}/rows"], transB=1
            )
        elif node.op_type != "MultiHeadAttention" and any(self._only_rows(value) for value in node.input):
            inputs = [self._to_rows(value) if value in self.tokens else value for value in node.input]
            new = with_attributes(helper.make_node(node.op_type, inputs, [f"{node.output[0]}/rows"]), node)
        else:
            return False
        new.name = new.output[0]
        self.rows[node.output[0]] = new.output[0]
        self.nodes.append(new)
        return True

    def _only_rows(self, value: str) -> bool:
        return value in self.rows and value not in self.whole

    def _to_rows(self, value: str) -> str:
        if value not in self.rows:
            self.rows[value] = f"{value}/rows"
            self._reshape(value, self._constant([-1, self.tokens[value].width], value), self.rows[value])
        return self.rows[value]

    def _restore(self, value: str) -> None:
        """Give `value` its batch and tokens back, for a reader that needs them."""
        if not self._only_rows(value):
            return
        self.whole.add(value)
        like, width = self.tokens[value]
        shape, leading = f"{like}/as/{width}", f"{like}/leading"
        if shape not in self.whole:
            self.whole.add(shape)
            if leading not in self.whole:
                self.whole.add(leading)
                self.nodes.append(helper.make_node("Shape", [like], [leading], leading, start=0, end=2))
            sizes = [leading, self._constant([width], shape)]
            self.nodes.append(helper.make_node("Concat", sizes, [shape], shape, axis=0))
        self._reshape(self.rows[value], shape, value)

    def _reshape(self, value: str, shape: str, result: str) -> None:
        self.nodes.append(helper.make_node("Reshape", [value, shape], [result], result))

    def _constant(self, values: list[int], name: str) -> str:
        self.new.append(numpy_helper.from_array(np.array(values), f"{name}/constant"))
        return f"{name}/constant"


def _ranks(graph: Rewriter) -> dict[str, int]:
    """How many dimensions values have: what shape inference tells, and what it cannot behind fused operators."""
    inferred = onnx.shape_inference.infer_shapes(graph.model).graph
    ranks = {tensor.name: len(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info):
        if value.type.tensor_type.HasField("shape"):
            ranks[value.name] = len(value.type.tensor_type.shape.dim)
    for node in graph.of_type("Transpose"):
        ranks[node.output[0]] = len(permutation(node))
    for node in graph.of_type("Reshape"):
        if (shape := graph.constant(node.input[1])) is not None:
            ranks[node.output[0]] = len(shape)
    return ranks
