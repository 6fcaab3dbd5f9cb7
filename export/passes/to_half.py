"""A float32 graph becomes one that computes in half precision; inputs and outputs stay float32."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, defs, helper, numpy_helper

from edgediffusion.engines.spec import Array

from .graph import MOVES, attribute, constants, element_types, outputs, rebuild

HALVES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
_TYPES: dict[int, tuple[str, np.dtype[Any]]] = {
    TensorProto.FLOAT: ("tensor(float)", np.dtype(np.float32)),
    TensorProto.FLOAT16: ("tensor(float16)", np.dtype(np.float16)),
    TensorProto.BFLOAT16: ("tensor(bfloat16)", np.dtype(ml_dtypes.bfloat16)),
}
_PERIODIC = {"Sin", "Cos"}


def to_half(model: onnx.ModelProto, dtype: str, islands: Collection[str] = ()) -> onnx.ModelProto:
    """`model` with every float32 value in `dtype` ("float16" or "bfloat16"), but for graph inputs and outputs.

    Float32 stay the nodes named in `islands`, those whose standard form knows no such type (see `defs.get_schema`), and
    the arguments of sine and cosine: of a timestep near 999, float16 keeps half radians and bfloat16 every fourth.
    Values, weights too, are cast where they change sides, once each.
    A node that only moves values takes them as they come, so that no Cast is paired with its inverse around it.
    Constants saturate, and stay nonzero: a mask of -3.4e38 is the lowest half, an epsilon of 1e-12 the least one.
    """
    return _Conversion(model, HALVES[dtype], islands).run()


def convertible(model: onnx.ModelProto, dtype: str) -> list[str]:
    """The names of the nodes that `to_half` turns when there are no islands, those that only move values left out."""
    conversion = _Conversion(model, HALVES[dtype], ())
    return [
        node.name
        for node in model.graph.node
        if node.op_type not in MOVES and conversion.is_float(node) and not conversion.is_kept(node)
    ]


class _Conversion:
    """One run of the pass. `types` are those of the values as they are emitted."""

    def __init__(self, model: onnx.ModelProto, half: int, islands: Collection[str]) -> None:
        self.model, self.half = model, half
        self.float = {name for name, kind in element_types(model).items() if kind == TensorProto.FLOAT}
        self.constants = {name: a for name, a in constants(model).items() if name in self.float}
        self.versions = {opset.domain: opset.version for opset in model.opset_import}
        self.islands, self.arguments = set(islands), _dependencies(model, _PERIODIC)
        self.halved: set[str] = set()
        self.casts: dict[tuple[str, int], str] = {}
        self.new: list[onnx.TensorProto] = []

    def run(self) -> onnx.ModelProto:
        nodes = [new for node in self.model.graph.node for new in self._converted(node)]
        for name in outputs(self.model) & self.halved:  # the name belongs to the float32 output
            inner = f"{name}/half"
            for node in nodes:
                node.input[:] = [inner if value == name else value for value in node.input]
                node.output[:] = [inner if value == name else value for value in node.output]
            nodes.append(_cast(inner, name, TensorProto.FLOAT))
        return rebuild(self.model, nodes, [*self.model.graph.initializer, *self.new])

    def is_float(self, node: onnx.NodeProto) -> bool:
        return any(name in self.float for name in (*node.input, *node.output))

    def is_kept(self, node: onnx.NodeProto) -> bool:
        """Whether the whole node stays float32, whatever comes in."""
        slots = self._slots(node)
        return (
            node.name in self.islands
            or not self.arguments.isdisjoint(node.output)
            or not any(allowed for name, allowed in slots if name in self.float)
        )

    def _converted(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The node in its own precision, after the casts that it is the first to need."""
        moved = [name for name in node.input if name in self.float - self.constants.keys()]
        stays = self.is_kept(node) or (node.op_type in MOVES and moved and not self.halved.intersection(moved))
        own = TensorProto.FLOAT if stays else self.half
        result = onnx.NodeProto()
        result.CopyFrom(node)
        slots = self._slots(node)
        for i, (name, allowed) in enumerate(slots[: len(node.input)]):
            if name in self.float:
                result.input[i], cast = self._as(name, own if allowed else TensorProto.FLOAT)
                yield from cast
        for name, allowed in slots[len(node.input) :]:
            if name in self.float and allowed and own == self.half:
                self.halved.add(name)
        if own == self.half:
            _retype(result, own)
        yield result

    def _as(self, name: str, wanted: int) -> tuple[str, list[onnx.NodeProto]]:
        """The name of `name` in the type `wanted`, and the node that makes it when there is none yet."""
        if wanted == (self.half if name in self.halved else TensorProto.FLOAT):
            return name, []
        if (name, wanted) in self.casts:
            return self.casts[name, wanted], []
        new = self.casts[name, wanted] = f"{name}/{_TYPES[wanted][1].name}"
        if name in self.constants:
            self.new.append(numpy_helper.from_array(_narrowed(self.constants[name], _TYPES[wanted][1]), new))
            return new, []
        return new, [_cast(name, new, wanted)]

    def _slots(self, node: onnx.NodeProto) -> list[tuple[str, bool]]:
        """Each input and output, and whether the standard lets it be half."""
        schema = defs.get_schema(node.op_type, self.versions[node.domain], node.domain)
        name = _TYPES[self.half][0]
        return [
            (value, name in formal[min(i, len(formal) - 1)].types)
            for values, formal in ((node.input, schema.inputs), (node.output, schema.outputs))
            for i, value in enumerate(values)
        ]


def _dependencies(model: onnx.ModelProto, op_types: Collection[str]) -> set[str]:
    """The outputs of the nodes of `op_types`, and all values that these depend on."""
    needed: set[str] = set()
    for node in reversed(model.graph.node):
        if node.op_type in op_types or needed.intersection(node.output):
            needed.update((*node.input, *node.output))
    return needed


def _retype(node: onnx.NodeProto, half: int) -> None:
    """Types that are written in attributes."""
    if node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT:
        node.attribute[0].CopyFrom(helper.make_attribute("to", half))
    for entry in node.attribute:
        if entry.HasField("t") and entry.t.data_type == TensorProto.FLOAT:
            value = _narrowed(numpy_helper.to_array(entry.t), _TYPES[half][1])
            entry.t.CopyFrom(numpy_helper.from_array(value, entry.t.name))


def _narrowed(values: Array, dtype: np.dtype[Any]) -> Array:
    limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    finite = np.clip(values, float(limits.min), float(limits.max))
    narrow: Array = np.where(np.isfinite(values), finite, values).astype(dtype)
    least = np.copysign(float(limits.smallest_subnormal), values).astype(dtype)
    return np.where((narrow == 0) & (values != 0), least, narrow)


def _cast(value: str, result: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [value], [result], result, to=to)
