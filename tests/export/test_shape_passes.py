"""The passes that leave no arithmetic on shapes, on graphs small enough to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import GraphSpec, TensorSpec
from edgediffusion.export.passes.direct_shapes import direct_shapes
from edgediffusion.export.passes.drop_expands import drop_expands
from edgediffusion.export.passes.drop_unused import drop_unused
from edgediffusion.export.passes.merge_transposes import merge_transposes

SPEC = GraphSpec(
    "g", (TensorSpec("x", "float32", ("n", 2, "h", "w")),), (TensorSpec("y", "float32", ("n", "c", "i", "j")),)
)


def graph(body: str, known: str = "", initializers: str = "", y: str = "n, 2, h, w") -> onnx.ModelProto:
    """x (n, 2, h, w) -> y, float32. `known` are shapes that the exporter noted."""
    infos = ", ".join(filter(None, (initializers, known)))
    return parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 18]> g (float[n, 2, h, w] x) => (float[{y}] y) <{infos}> {{ {body} }}'
    )


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def constant(model: onnx.ModelProto, name: str) -> Any:
    return {t.name: numpy_helper.to_array(t).tolist() for t in model.graph.initializer}[name]


def run(model: onnx.ModelProto, path: Path) -> np.ndarray:
    path.write_bytes(model.SerializeToString())
    x = np.random.default_rng(0).standard_normal((3, 2, 5, 7)).astype(np.float32)
    with open_engine(path, SPEC, device="cpu") as engine:
        return engine({"x": x})["y"]


def assert_same(changed: onnx.ModelProto, model: onnx.ModelProto, folder: Path) -> None:
    assert np.array_equal(run(changed, folder / "b.onnx"), run(model, folder / "a.onnx"))


TOKENS = """
    n = Shape<start = 0, end = 1>(x)
    hw = Shape<start = 2, end = 4>(x)
    tokens = ReduceProd<keepdims = 1>(hw)
    two = Constant<value_ints = [2]>()
    flat = Concat<axis = 0>(n, two, tokens)
    a = Reshape(x, flat)
    b = Relu(a)
    back = Concat<axis = 0>(n, two, hw)
    y = Reshape(b, back)
"""


def test_tokens_are_made_by_a_constant_and_made_a_picture_by_a_shape(tmp_path: Path) -> None:
    model = graph(TOKENS, "float[n, 2, hw] a, float[n, 2, hw] b")
    changed = drop_unused(direct_shapes(model))
    assert ops(changed) == ["Reshape", "Relu", "Shape", "Reshape"]
    assert constant(changed, "a/shape") == [0, 2, -1]
    assert changed.graph.node[2].input == ["x"]
    assert_same(changed, model, tmp_path)


def test_a_free_dimension_alone_becomes_minus_one(tmp_path: Path) -> None:
    body = """
        n = Shape<start = 0, end = 1>(x)
        double = Add(n, n)
        one = Constant<value_ints = [1]>()
        hw = Shape<start = 2, end = 4>(x)
        target = Concat<axis = 0>(double, one, hw)
        y = Reshape(x, target)
    """
    model = graph(body, y="n2, 1, h, w")
    changed = drop_unused(direct_shapes(model))
    assert ops(changed) == ["Reshape"]
    assert constant(changed, "y/shape") == [-1, 1, 0, 0]
    assert_same(changed, model, tmp_path)


def test_resize_to_the_size_of_another_value(tmp_path: Path) -> None:
    body = """
        a = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)
        c = Shape<start = 0, end = 2>(a)
        hw = Shape<start = 2, end = 4>(x)
        sizes = Concat<axis = 0>(c, hw)
        y = Resize<nearest_mode = "floor", coordinate_transformation_mode = "asymmetric">(a, , , sizes)
    """
    model = graph(body)
    changed = drop_unused(direct_shapes(model))
    assert ops(changed) == ["MaxPool", "Shape", "Resize"]
    assert changed.graph.node[1].input == ["x"]
    assert_same(changed, model, tmp_path)


def test_shapes_that_are_direct_or_unknown_stay() -> None:
    body = "s = Shape(x) a = Reshape(x, s) one = Constant<value_ints = [1]>() t = Add(s, one) y = Expand(a, t)"
    assert ops(direct_shapes(graph(body, y="a, b, c, d"))) == ["Shape", "Reshape", "Constant", "Add", "Expand"]


def test_an_expand_that_broadcasting_does_too_is_dropped(tmp_path: Path) -> None:
    body = "s = Shape(x) a = Expand(one, s) b = Mul(a, two) y = Add(x, b)"
    model = graph(body, "float[n, 2, h, w] a, float[n, 2, h, w] b", "float one = {1}, float two = {2}")
    changed = drop_unused(drop_expands(model))
    assert ops(changed) == ["Mul", "Add"]
    assert not {"a", "b"} & {value.name for value in changed.graph.value_info}, "they are smaller now"
    assert_same(changed, model, tmp_path)


@pytest.mark.parametrize(
    "body",
    [
        "s = Shape(x) a = Expand(one, s) y = Identity(a)",
        "s = Shape(x) a = Expand(one, s) b = Mul(a, two) y = Concat<axis = 1>(x, b)",
        "s = Shape(x) y = Expand(one, s)",
    ],
)
def test_an_expand_that_is_noticed_stays(body: str) -> None:
    model = graph(body, "float[n, 2, h, w] a", "float one = {1}, float two = {2}")
    assert ops(drop_expands(model)) == ops(model)


def test_of_two_expands_that_need_one_another_one_stays(tmp_path: Path) -> None:
    body = "s = Shape(x) a = Expand(one, s) b = Expand(two, s) y = Add(a, b)"
    model = graph(body, "float[n, 2, h, w] a, float[n, 2, h, w] b", "float one = {1}, float two = {2}")
    changed = drop_expands(drop_expands(drop_expands(model)))
    assert ops(changed) == ["Shape", "Expand", "Add"]
    assert_same(changed, model, tmp_path)


def test_merge_transposes(tmp_path: Path) -> None:
    body = """
        a = Transpose<perm = [0, 2, 3, 1]>(x)
        b = Transpose<perm = [2, 0, 1, 3]>(a)
        c = Transpose<perm = [1, 3, 2, 0]>(b)
        y = Relu(c)
    """
    model = graph(body)
    changed = drop_unused(merge_transposes(model))
    assert ops(changed) == ["Transpose", "Relu"]
    assert_same(changed, model, tmp_path)
