"""Each pass on a graph small enough to read; none may change what a graph computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import GraphSpec, TensorSpec
from edgediffusion.export.passes import PASSES, clean, emulate_half, probe_ranges, simplify, store_weights, to_half
from edgediffusion.export.passes.drop_no_ops import drop_no_ops
from edgediffusion.export.passes.drop_unused import drop_unused
from edgediffusion.export.passes.fold_constants import fold_constants
from edgediffusion.export.passes.graph import constants, element_types, float_values
from edgediffusion.export.passes.merge_equal import merge_equal
from edgediffusion.export.passes.probe_ranges import RANGES
from edgediffusion.export.passes.resolve_types import resolve_types
from edgediffusion.export.passes.store_weights import matrices
from edgediffusion.export.passes.strip import strip
from edgediffusion.export.passes.to_half import convertible
from edgediffusion.export.weights import StoredTensor, quantize, write_tensors

SPEC = GraphSpec("g", (TensorSpec("x", "float32", ("n", 4)),), (TensorSpec("y", "float32", ("n", 4)),))


def graph(body: str, initializers: str = "") -> onnx.ModelProto:
    """x (n, 4) -> y (n, 4), float32."""
    return parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 18]> g (float[n, 4] x) => (float[n, 4] y) <{initializers}> {{ {body} }}'
    )


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def values(model: onnx.ModelProto) -> dict[str, Any]:
    return {t.name: numpy_helper.to_array(t).tolist() for t in model.graph.initializer}


def run(model: onnx.ModelProto, path: Path, x: np.ndarray | None = None) -> np.ndarray:
    path.write_bytes(model.SerializeToString())
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32) if x is None else x
    with open_engine(path, SPEC, device="cpu") as engine:
        return engine({"x": x})["y"]


def test_resolve_types() -> None:
    model = resolve_types(graph("c = CastLike(one, x) y = Mul(x, c)", "int64 one = {1}"))
    assert ops(model) == ["Cast", "Mul"]
    assert helper.get_attribute_value(model.graph.node[0].attribute[0]) == TensorProto.FLOAT


def test_fold_constants_computes_what_needs_no_input() -> None:
    body = "two = Constant<value_float = 2.0>() a = Mul(two, three) b = Sqrt(a) y = Add(x, b)"
    model = fold_constants(graph(body, "float three = {8}"))
    assert ops(model) == ["Add"]
    assert values(model)["b"] == 4.0
    assert model.graph.node[0].input == ["x", "b"]


def test_fold_constants_knows_the_shapes_of_weights() -> None:
    body = "s = Shape(w) t = Shape<end = 1>(w) u = Shape(x) z = Expand(zero, t) v = Add(x, z) y = Reshape(v, u)"
    weight = graph(body, "float[4, 2] w = {0, 0, 0, 0, 0, 0, 0, 0}, float zero = {0}")
    weight.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model = fold_constants(weight)
    assert ops(model) == ["Shape", "Add", "Reshape"]
    assert constants(model)["z"].tolist() == [0.0] * 4


def test_fold_constants_leaves_weights_and_outputs_alone() -> None:
    model = fold_constants(graph("t = Sqrt(w) u = Mul(t, x) y = Add(u, z)", "float w = {4}, float z = {1}"))
    assert ops(model) == ["Mul", "Add"]
    weight = graph("t = Sqrt(w) y = Mul(t, x)", "float w = {4}")
    weight.graph.initializer[0].data_location = TensorProto.EXTERNAL
    assert ops(fold_constants(weight)) == ["Sqrt", "Mul"]
    output = fold_constants(graph("y = Sqrt(z)", "float z = {1}"))
    assert ops(output) == ["Sqrt"]


@pytest.mark.parametrize(
    "no_op",
    [
        "Identity(x)",
        "Cast<to = 1>(x)",
        "Concat<axis = 0>(x)",
        "Mul(x, one)",
        "Div(x, one)",
        "Add(x, zero)",
        "Sub(x, zero)",
        "Transpose<perm = [0, 1]>(x)",
        "Slice(x, first, last, axis, step)",
        "Expand(x, ones)",
    ],
)
def test_drop_no_ops(no_op: str) -> None:
    slices = "int64[1] first = {0}, int64[1] last = {9223372036854775807}, int64[1] axis = {1}, int64[1] step = {1}"
    initializers = f"float one = {{1}}, float zero = {{0}}, int64[2] ones = {{1, 1}}, {slices}"
    model = drop_no_ops(graph(f"a = {no_op} b = Identity(a) y = Relu(b)", initializers))
    assert ops(model) == ["Relu"]
    assert model.graph.node[0].input == ["x"]


@pytest.mark.parametrize(
    "operation",
    [
        "Cast<to = 7>(x)",
        "Concat<axis = 0>(x, x)",
        "Mul(x, ones)",
        "Sub(zero, x)",
        "Div(one, x)",
        "Add(x, one)",
        "Mul(x, x)",
        "Transpose<perm = [1, 0]>(x)",
        "Slice(x, first, last, axis, step)",
        "Expand(x, threes)",
    ],
)
def test_drop_no_ops_leaves_operations(operation: str) -> None:
    initializers = (
        "float one = {1}, float zero = {0}, float[1, 1, 4] ones = {1, 1, 1, 1}, int64[3] threes = {3, 1, 1},"
        "int64[1] first = {0}, int64[1] last = {3}, int64[1] axis = {1}, int64[1] step = {1}"
    )
    assert len(ops(drop_no_ops(graph(f"a = {operation} y = Relu(a)", initializers)))) == 2


def test_drop_no_ops_keeps_the_names_of_outputs() -> None:
    model = drop_no_ops(graph("a = Relu(x) y = Identity(a)"))
    assert ops(model) == ["Relu", "Identity"]


def test_merge_equal() -> None:
    body = """
        a = Add(x, one) b = Add(x, uno)
        c = Relu(a) d = Relu(b)
        e = Concat<axis = 0>(c, c) f = Concat<axis = 1>(d, d)
        y = Mul(c, d)
    """
    model = merge_equal(graph(body, "float one = {1}, float uno = {1}, float[1] eins = {1}"))
    assert ops(model) == ["Add", "Relu", "Concat", "Concat", "Mul"]
    assert model.graph.node[-1].input == ["c", "c"]
    assert values(model) == {"one": 1.0, "eins": [1.0]}


def test_merge_equal_tells_not_a_number_and_types_apart() -> None:
    model = merge_equal(graph("y = Relu(x)", "float a = {1}, int64 b = {1}, float c = {0}, float d = {-0.0}"))
    assert len(model.graph.initializer) == 4


def test_drop_unused() -> None:
    model = drop_unused(graph("a = Relu(x) b = Exp(a) y = Mul(x, one)", "float one = {1}, float two = {2}"))
    assert ops(model) == ["Mul"]
    assert values(model) == {"one": 1.0}


def test_strip() -> None:
    model = graph("y = Relu(x)")
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = "/home/someone/model.py"
    for proto in (model, model.graph, model.graph.node[0], model.graph.input[0]):
        proto.metadata_props.add(key="stack_trace", value="/home/someone/model.py")
    model.graph.value_info.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))
    model.producer_version = "2.13"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    bare = strip(model)
    assert b"someone" not in bare.SerializeToString()
    assert (bare.producer_name, bare.producer_version, bare.ir_version) == ("edgediffusion", "", 8)
    assert not bare.graph.value_info
    assert bare.graph.output == model.graph.output


BUSY = """
    two = Constant<value_float = 2.0>()
    half = Reciprocal(two)
    one = Mul(two, half)
    like = CastLike(whole, x)
    a = Mul(x, one)
    b = Identity(a)
    s1 = Shape(b) s2 = Shape(x)
    e1 = Expand(like, s1) e2 = Expand(like, s2)
    c = Add(e1, b) d = Mul(c, e2)
    unused = Exp(d)
    y = Sub(d, half)
"""


@pytest.mark.parametrize("change", [*PASSES, strip, simplify], ids=lambda change: change.__name__)
def test_no_pass_changes_what_is_computed(change: Callable[[onnx.ModelProto], onnx.ModelProto], tmp_path: Path) -> None:
    model = graph(BUSY, "int64 whole = {3}")
    before = model.SerializeToString()
    changed = change(model)
    assert model.SerializeToString() == before, "the pass altered its input"
    assert np.array_equal(run(changed, tmp_path / "b.onnx"), run(model, tmp_path / "a.onnx"))


def test_simplify_leaves_only_what_is_needed() -> None:
    assert Counter(ops(simplify(graph(BUSY, "int64 whole = {3}")))) == Counter(["Add", "Mul", "Sub"])


@pytest.mark.parametrize(("dtype", "stored"), [("F32", np.float32), ("F16", np.float16)])
def test_store_weights(tmp_path: Path, dtype: str, stored: type[np.floating]) -> None:
    weight = np.array([0.5, 1, 2, 4], stored)
    (tmp_path / "raw").write_bytes(b"header" + weight.tobytes())
    placed = write_tensors(tmp_path / "w", {"m.weight": StoredTensor(tmp_path / "raw", dtype, (4,), 6, weight.nbytes)})
    model = graph("a = Mul(x, w) y = Add(a, w)", "float[4] w = {9, 9, 9, 9}, float one = {1}")
    model.graph.initializer[0].name = "m.weight"
    for node in model.graph.node:
        node.input[1] = "m.weight"
    result = store_weights(model, placed)
    assert ops(result) == (["Mul", "Add"] if dtype == "F32" else ["Cast", "Mul", "Add"])
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    expected = x * weight.astype(np.float32) + weight.astype(np.float32)
    assert np.array_equal(run(result, tmp_path / "g.onnx"), expected)


def test_int8_weights_are_multiplied_by_their_scales(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).standard_normal((4, 4)).astype(np.float32)
    weight[2] = 0
    (tmp_path / "raw").write_bytes(weight.tobytes())
    source = StoredTensor(tmp_path / "raw", "F32", (4, 4), 0, weight.nbytes)
    placed = write_tensors(tmp_path / "w", quantize("w", source))
    model = graph("t = Transpose<perm = [1, 0]>(w) y = MatMul(x, t)", "float[4, 4] w = {0}")
    result = store_weights(model, placed)
    assert ops(result) == ["DequantizeLinear", "Transpose", "MatMul"]
    assert {t.name: t.data_type for t in result.graph.initializer} == {
        "w": TensorProto.INT8,
        "w_scale": TensorProto.FLOAT,
    }
    x = np.eye(4, dtype=np.float32)
    steps = np.abs(weight).max(1) / 127
    error = np.abs(run(result, tmp_path / "g.onnx", x).T - weight)
    assert (error <= 0.5001 * steps[:, None]).all()
    assert error.max() > 0


def test_matrices_are_what_is_only_multiplied_with() -> None:
    body = """
        t = Transpose<perm = [1, 0]>(w1) a = MatMul(x, t)
        b = Gemm<transB = 1>(a, w2, w3)
        c = Add(b, w3) d = MatMul(w4, c)
        u = Transpose<perm = [1, 0]>(w5) e = MatMul(c, u) f = Add(e, u) y = MatMul(f, w6)
    """
    model = weighted(body, ", ".join(f"float[4, 4] w{i} = {{0}}" for i in range(1, 7)))
    assert matrices(model) == {"w1", "w2", "w6"}


def weighted(body: str, initializers: str) -> onnx.ModelProto:
    """A graph whose weights are the initializers with names that begin with w."""
    model = graph(body, initializers)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("w"):
            tensor.data_location = TensorProto.EXTERNAL
    return model


def half(body: str, dtype: str = "float16", islands: tuple[str, ...] = (), initializers: str = "") -> onnx.ModelProto:
    """`weighted` in half precision."""
    changed = clean(to_half(weighted(body, initializers), dtype, islands))
    onnx.shape_inference.infer_shapes(changed, check_type=True, strict_mode=True)
    return changed


def test_to_half_casts_at_the_ends_only() -> None:
    model = half("a = Add(x, x) s = Flatten(a) b = Relu(s) y = Mul(b, a) z = Exp(y)")
    assert ops(model) == ["Cast", "Add", "Flatten", "Relu", "Mul", "Cast"]
    assert model.graph.node[-1].output == ["y"]
    assert element_types(model)["a"] == TensorProto.FLOAT16


def test_to_half_casts_once_on_each_side_of_an_island() -> None:
    body = "a = Add(x, x) [i] b = Exp(a) [j] c = Transpose(b) [k] d = Mul(c, a) e = Relu(d) f = Neg(d) y = Add(e, f)"
    model = half(body, islands=("i", "k"))
    assert ops(model) == ["Cast", "Add", "Cast", "Exp", "Transpose", "Mul", "Cast", "Relu", "Neg", "Add", "Cast"]
    assert {name: element_types(model)[name] for name in "acdf"} == {"a": 10, "c": 1, "d": 1, "f": 10}


def test_to_half_keeps_the_arguments_of_sine_and_cosine() -> None:
    model = half("a = Mul(x, f) s = Sin(a) c = Cos(a) b = Add(s, c) y = Relu(b)", initializers="float f = {0.1}")
    assert ops(model) == ["Mul", "Sin", "Cos", "Cast", "Cast", "Add", "Relu", "Cast"]
    assert values(model)["f"] == pytest.approx(0.1)


def test_to_half_leaves_what_the_standard_wants_in_float32() -> None:
    body = """
        a = Unsqueeze(x, zero) b = Unsqueeze(a, zero) c = Resize(b, , scales) d = Squeeze(c, axes)
        t = IsInf(d) u = Where(t, d, d) y = Relu(u)
    """
    initializers = "int64[1] zero = {0}, int64[2] axes = {0, 1}, float[4] scales = {1, 1, 1, 1}"
    model = half(body, initializers=initializers)
    assert values(model)["scales"] == [1.0] * 4
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    assert resize.input[2] == "scales"
    before_is_inf = next(node for node in model.graph.node if node.op_type == "IsInf").input[0]
    assert element_types(model)[before_is_inf] == TensorProto.FLOAT  # opset 18 knows IsInf of float32 only


def test_to_half_bounds_constants() -> None:
    body = "a = Add(x, mask) b = Add(a, inf) c = Div(b, eps) d = Pow(c, two) e = Cast<to = 1>(n) y = Mul(d, e)"
    initializers = "float mask = {-3.4e38}, float inf = {-inf}, float eps = {-1e-12}, float two = {2}, int64 n = {3}"
    found = values(half(body, initializers=initializers))
    assert found["mask/float16"] == -65504
    assert found["inf/float16"] == -np.inf
    assert found["eps/float16"] == -(2.0**-24)
    assert found["two/float16"] == 2
    brain = values(half(body, "bfloat16", initializers=initializers))
    assert brain["mask/bfloat16"] == pytest.approx(-3.39e38, rel=1e-2)


def test_to_half_shares_constants_of_islands() -> None:
    model = half("[i] a = Mul(x, k) b = Mul(a, k) y = Div(b, k)", islands=("i",), initializers="float k = {0.1}")
    assert values(model).keys() == {"k", "k/float16"}


def test_to_half_takes_weights_as_they_are_stored() -> None:
    body = "v = Cast<to = 1>(w) b = Mul(x, v) [i] c = Exp(b) y = Add(c, v)"
    weight = "float16[4] w = {1, 1, 1, 1}"
    assert ops(half(body, initializers=weight)) == ["Cast", "Mul", "Exp", "Add", "Cast"]
    assert ops(half("b = Mul(x, w) y = Add(b, w)", initializers="float[4] w = {1, 1, 1, 1}")) == [
        "Cast", "Cast", "Mul", "Add", "Cast",
    ]  # fmt: skip


def test_convertible_names_what_computes() -> None:
    body = "[i] a = Add(x, x) [j] b = Transpose(a) [k] c = Shape(b) [l] d = Cos(b) [m] y = Mul(d, a)"
    assert convertible(graph(body), "float16") == ["m"]
    assert convertible(graph("[i] a = Add(x, x) [j] y = Round(a)"), "bfloat16") == ["i"]


def test_emulate_half_rounds_where_the_runtime_does_not(tmp_path: Path) -> None:
    """1 + 2^-12 rounds to 1 in float16, and 300 * 300 is beyond it."""
    body = "a = Add(x, tiny) b = Sub(a, x) y = Mul(b, big)"
    initializers = "float tiny = {0.000244140625}, float big = {4096}"
    ones = np.ones((1, 4), np.float32)
    model = half(body, initializers=initializers)
    assert run(emulate_half(model), tmp_path / "a.onnx", ones).tolist() == [[0] * 4]
    square = half("a = Mul(x, x) y = Sqrt(a)")
    assert run(square, tmp_path / "b.onnx", 300 * ones).tolist() == [[300] * 4], "the CPU provider has changed"
    assert run(emulate_half(square), tmp_path / "c.onnx", 300 * ones).tolist() == [[np.inf] * 4]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_emulate_half_is_float32_inside(dtype: str) -> None:
    body = """
        v = Cast<to = 1>(w) a = Mul(x, v) b = Reshape(a, s)
        c = Cast<to = 1>(s) d = ReduceMax<keepdims = 0>(c) e = Add(b, d) y = Mul(e, k)
    """
    initializers = f"{dtype}[4] w = {{1, 1, 1, 1}}, int64[2] s = {{-1, 4}}, float k = {{2}}"
    model = emulate_half(half(body, dtype, initializers=initializers))
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    types = element_types(model)
    assert [types[name] for name in ("w/float", "a", "b", "e", "k/" + dtype)] == [TensorProto.FLOAT] * 5
    assert "b/rounded" not in types, "moving values rounds nothing"


def test_probe_ranges(tmp_path: Path) -> None:
    body = "a = Mul(x, k) b = Where(t, a, inf) c = Add(b, lowest) y = Relu(a)"
    model = graph(body, "float k = {-3}, bool t = {0}, float inf = {-inf}, float lowest = {-3.4e38}")
    path = tmp_path / "g.onnx"
    path.write_bytes(probe_ranges(model, float_values(model)).SerializeToString())
    spec = replace(SPEC, outputs=(*SPEC.outputs, TensorSpec(RANGES, "float32", (4,))))
    with open_engine(path, spec, device="cpu") as engine:
        found = engine({"x": np.array([[1, -2, 3, 4]], np.float32)})
    assert found[RANGES].tolist() == [12, 0, 0, 6]
    assert found["y"].tolist() == [[0, 6, 0, 0]]
