"""Pictures lie in memory with their channels last, as the tensor cores' convolutions read them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgediffusion.engines.spec import Array

from ..graph import attribute, rebuild
from .rewriter import TO_FIRST, TO_LAST, Rewriter, fused, permutation, transpose, with_attributes

ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Sigmoid", "Cast"})
RANK = 4


def to_channels_last(model: onnx.ModelProto) -> onnx.ModelProto:
    """Convolutions become NhwcConv, which reads channels last as GroupNorm does; what lies between them follows.

    A value is transposed where an operator wants it the other way, once for all of them, so a UNet is left with the
    transposes of its input and output. Weights are transposed when the graph is loaded, which folds them.
    """
    return _Layout(model).run()


class _Layout:
    """One run of the pass. `last` has the name of the channels-last form of each picture that has one."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = Rewriter(model)
        self.last: dict[str, str] = {}
        self.first = {v.name for v in model.graph.input if len(v.type.tensor_type.shape.dim) == RANK}
        self.made: set[str] = set()  # channels first: there, or transposed back for a reader
        self.same: dict[str, str] = {}  # a value -> the channels-last form that it is
        self.nodes: list[onnx.NodeProto] = []
        self.new: list[onnx.TensorProto] = []

    def run(self) -> onnx.ModelProto:
        for node in self.graph.nodes:
            if not self._rewritten(node):
                for value in node.input:
                    self._to_first(value)
                self.nodes.append(node)
        for name in sorted(self.graph.outputs):
            self._to_first(name)
        for node in self.nodes:
            node.input[:] = [self.same.get(value, value) for value in node.input]
        self.graph.nodes = self.nodes
        model = self.graph.result()
        return rebuild(model, model.graph.node, [*model.graph.initializer, *self.new])

    def _rewritten(self, node: onnx.NodeProto) -> bool:
        """Whether `node` was put into the new graph in its channels-last form."""
        if node.op_type in ELEMENTWISE:
            return self._elementwise(node)
        rewrite = REWRITES.get(node.op_type)
        return rewrite is not None and rewrite(self, node)

    def _conv(self, node: onnx.NodeProto) -> bool:
        weight = f"{node.input[1]}/channels_last"
        if weight not in self.made:
            self.made.add(weight)
            self._emit(transpose(node.input[1], weight, TO_LAST))
        inputs = [self._to_last(node.input[0]), weight, *node.input[2:]]
        self._emit(with_attributes(fused("NhwcConv", inputs, [self._declare(node.output[0])]), node))
        return True

    def _elementwise(self, node: onnx.NodeProto) -> bool:
        if not any(value in self.last for value in node.input):
            return False
        operands = [self._operand(value) for value in node.input]
        if None in operands:
            return False
        self._like(node, [value for value in operands if value is not None])
        return True

    def _operand(self, value: str) -> str | None:
        """`value` as it meets a channels-last picture; None where that cannot be told."""
        constant = self.graph.constant(value)
        if constant is not None and constant.size == 1:
            return value
        if value in self.last or value in self.first:
            return self._to_last(value)
        return self._per_channel(value)

    def _per_channel(self, value: str) -> str | None:
        """(batch, channels, 1, 1) made of (batch, channels), as (batch, 1, 1, channels)."""
        source, axes = value, list[int]()
        while (unsqueeze := self.graph.maker(source, "Unsqueeze")) is not None:
            positions = self.graph.constant(unsqueeze.input[1])
            axes += [] if positions is None else positions.tolist()
            source = unsqueeze.input[0]
        if sorted(axes) != [2, 3]:
            return None
        new = f"{value}/channels_last"
        if new not in self.made:
            self.made.add(new)
            self._emit(helper.make_node("Unsqueeze", [source, self._constant(np.array([1, 2]), new)], [new], new))
        return new

    def _concat(self, node: onnx.NodeProto) -> bool:
        if attribute(node, "axis") != 1 or not any(value in self.last for value in node.input):
            return False
        if not all(value in self.last or value in self.first for value in node.input):
            return False
        result = self._declare(node.output[0])
        self._emit(helper.make_node("Concat", [self._to_last(v) for v in node.input], [result], result, axis=3))
        return True

    def _resize(self, node: onnx.NodeProto) -> bool:
        """To sizes of height and width, or by constant scales of all axes."""
        source, region, *factors = node.input
        if source not in self.last:
            return False
        scales = self.graph.constant(factors[0])
        axes: dict[str, Any] = {} if scales is not None else {"axes": [1, 2]}
        if scales is not None and scales.shape == (RANK,):
            factors = [self._constant(scales[TO_LAST], node.output[0])]
        elif attribute(node, "axes") != [2, 3]:
            return False
        result = self._declare(node.output[0])
        new = helper.make_node("Resize", [self._to_last(source), region, *factors], [result], result, **axes)
        self._emit(with_attributes(new, node, without=["axes"]))
        return True

    def _shape(self, node: onnx.NodeProto) -> bool:
        """Of height and width, which lie beside one another in both orders."""
        if node.input[0] not in self.last or (attribute(node, "start"), attribute(node, "end")) != (2, 4):
            return False
        self._emit(helper.make_node("Shape", [self._to_last(node.input[0])], node.output, node.name, start=1, end=3))
        return True

    def _pad(self, node: onnx.NodeProto) -> bool:
        pads = self.graph.constant(node.input[1])
        if node.input[0] not in self.last or pads is None or len(pads) != 2 * RANK:
            return False
        moved = pads.reshape(2, RANK)[:, TO_LAST].reshape(-1)
        inputs = [self._to_last(node.input[0]), self._constant(moved, node.output[0]), *node.input[2:]]
        self._like(node, inputs)
        return True

    def _transposed(self, node: onnx.NodeProto) -> bool:
        """Where the graph reads channels last already, there is nothing left to do."""
        source, result = node.input[0], node.output[0]
        if permutation(node) == TO_LAST and source in self.last and result not in self.graph.outputs:
            self.same[result] = self._to_last(source)
            return True
        if permutation(node) == TO_FIRST:
            self.last[result] = source
            return True
        return False

    def _reshape(self, node: onnx.NodeProto) -> bool:
        """What a VAE does after its attention: tokens, their channels put first, take the shape of a picture."""
        tokens = self.graph.maker(node.input[0], "Transpose")
        shape = self.graph.maker(node.input[1], "Shape")
        if tokens is None or shape is None or permutation(tokens) != [0, 2, 1] or shape.input[0] not in self.last:
            return False
        result = self._declare(node.output[0])
        self._emit(helper.make_node("Shape", [self._to_last(shape.input[0])], [f"{result}/shape"], f"{result}/shape"))
        self._emit(helper.make_node("Reshape", [tokens.input[0], f"{result}/shape"], [result], result))
        return True

    def _like(self, node: onnx.NodeProto, inputs: list[str]) -> None:
        result = self._declare(node.output[0])
        self._emit(with_attributes(helper.make_node(node.op_type, inputs, [result], result), node))

    def _declare(self, value: str) -> str:
        self.last[value] = f"{value}/channels_last"
        return self.last[value]

    def _to_last(self, value: str) -> str:
        if value not in self.last:
            self._emit(transpose(value, self._declare(value), TO_LAST))
            self.made.add(value)
        return self.last[value]

    def _to_first(self, value: str) -> None:
        if value in self.last and value not in self.made:
            self.made.add(value)
            self._emit(transpose(self.last[value], value, TO_FIRST))

    def _constant(self, values: Array, name: str) -> str:
        self.new.append(numpy_helper.from_array(values, f"{name}/constant"))
        return f"{name}/constant"

    def _emit(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)


REWRITES: dict[str, Callable[[_Layout, onnx.NodeProto], bool]] = {
    "Conv": _Layout._conv,
    "Concat": _Layout._concat,
    "Resize": _Layout._resize,
    "Reshape": _Layout._reshape,
    "Shape": _Layout._shape,
    "Pad": _Layout._pad,
    "Transpose": _Layout._transposed,
}
