"""The CPU provider's dialect, run by that provider."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from edgediffusion.engines.errors import ExportError
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec
from edgediffusion.export.dialect import write_dialects
from edgediffusion.export.families import Sample
from edgediffusion.export.passes.cpu import to_cpu_dialect
from edgediffusion.export.passes.cpu.halves import split_weights
from edgediffusion.export.passes.cpu.rows import to_rows
from edgediffusion.export.passes.cpu.subpixels import to_subpixels
from edgediffusion.export.precision import Case, open_graph
from edgediffusion.export.verify import relative_error
from edgediffusion.runtime.manifest import Manifest

# How many operators each pass makes in the tiny networks.
PLACES = {
    "unet": {"MultiHeadAttention": 8, "Slice": 16, "Gemm": 20, "FusedMatMul": 24},
    "vae_decoder": {"MultiHeadAttention": 1, "Gemm": 4, "Conv": 9},
    "vae_encoder": {"MultiHeadAttention": 1, "Gemm": 4},
    "text_encoder": {"Gemm": 12},
}
# The same sums in another order, in float32.
TOLERANCE = 1e-5
GELU = "[d] d = Div(r, root) [e] e = Erf(d) [a] a = Add(e, one) [h] h = Mul(r, a) [g] g = Mul(h, half)"
HEADER = '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> net'
rng = np.random.default_rng(0)
WEIGHTS = {
    "w": rng.standard_normal((12, 4)),
    "b": rng.standard_normal(12),
    "v": rng.standard_normal((4, 6)),
    "c": rng.standard_normal(4),
    "f": rng.standard_normal((4, 4)),
    "k": rng.standard_normal((12, 12)),
    "gamma": rng.standard_normal(4),
    "kernel": rng.standard_normal((5, 4, 3, 3)),
    "bias": rng.standard_normal(5),
    "twice": np.array([1, 1, 2, 2]),
    "thrice": np.array([1, 1, 3, 3]),
    "root": np.array(2**0.5),
    "one": np.array(1),
    "half": np.array(0.5),
}


def parsed(text: str) -> onnx.ModelProto:
    """The graph `text` over those of `WEIGHTS` that it takes."""
    model = parser.parse_model(HEADER + text)
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in WEIGHTS.items() if name in read
    )
    return model


GATED = parsed(
    "(float[n, t, 4] x) => (float[n, t, 4] y) {"
    "[wt] wt = Transpose<perm = [1, 0]>(w) [p] p = MatMul(x, wt) [q] q = Add(p, b)"
    f"[s] l, r = Split<axis = -1, num_outputs = 2>(q) {GELU} [m] m = Mul(l, g)"
    "[vt] vt = Transpose<perm = [1, 0]>(v) [u] u = MatMul(m, vt) [o] o = Add(u, c)"
    "[z] z = Add(o, x) [y] y = LayerNormalization<axis = -1>(z, gamma) }"
)


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    return open_graph(model, Path(), [output.name for output in model.graph.output])(feeds)


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("component", PLACES)
def test_a_dialect_computes_what_the_portable_graph_does(component: str, bundle: Path) -> None:
    graph = Manifest.read(bundle).graphs[component]
    sizes = {"batch": 2, "height": 24, "width": 16, "sequence_length": 77}
    feeds = {}
    for tensor in graph.spec.inputs:
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
        values = rng.integers(1, 400, shape) if tensor.dtype == "int64" else rng.standard_normal(shape)
        feeds[tensor.name] = values.astype(tensor.dtype)
    files = {"portable": graph.model, "cpu": graph.dialects["cpu"].model}
    results = {}
    for name, file in files.items():
        with open_engine(bundle / file, graph.spec, device="cpu") as engine:
            results[name] = engine(feeds)
    assert relative_error(results["cpu"], results["portable"]) < TOLERANCE
    assert {op_type: count for op_type, count in graph.dialects["cpu"].changed.items() if count} == PLACES[component]


def test_a_gated_layer_is_two_and_its_tokens_are_rows() -> None:
    feeds = {"x": rng.standard_normal((2, 5, 4)).astype(np.float32)}
    apart = split_weights(GATED)
    assert "Split" not in ops(apart)
    rows = to_rows(apart)
    assert ops(rows).count("Gemm") == 3
    assert "MatMul" not in ops(rows)
    assert ops(rows).count("Reshape") == 2  # there and back: all that lies between them follows
    for model in (apart, rows, to_cpu_dialect(GATED)[0]):
        assert relative_error(run(model, feeds), run(GATED, feeds)) < TOLERANCE


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        # Of another group of tokens, which the sum may repeat: both come as they are.
        ("(float[n, t, 4] x, float[1, t, 4] s) => (float[n, t, 4] y) { [wt] wt = Transpose<perm = [1, 0]>(f)"
         "[p] p = MatMul(x, wt) [o] o = Add(p, c) [y] y = Add(o, s) }", 1),
        # Normalised over more than a token.
        ("(float[n, t, 4] x) => (float[n, t, 4] y) { [wt] wt = Transpose<perm = [1, 0]>(f)"
         "[p] p = MatMul(x, wt) [o] o = Add(p, c) [y] y = Softmax<axis = 1>(o) }", 1),
        # The product is read without its bias too; the weight depends on the input.
        ("(float[n, t, 4] x) => (float[n, t, 4] y) { [wt] wt = Transpose<perm = [1, 0]>(f)"
         "[p] p = MatMul(x, wt) [o] o = Add(p, c) [y] y = Mul(o, p) }", 0),
        ("(float[n, t, 4] x, float[4, 4] o2) => (float[n, t, 4] y) { [p] p = MatMul(x, o2) [y] y = Add(p, c) }", 0),
        # Pictures.
        ("(float[n, 2, t, 4] x) => (float[n, 2, t, 4] y) { [wt] wt = Transpose<perm = [1, 0]>(f)"
         "[p] p = MatMul(x, wt) [y] y = Add(p, c) }", 0),
    ],
)  # fmt: skip
def test_what_rows_do_not_follow(text: str, rows: int) -> None:
    model = parsed(text)
    feeds = {
        value.name: rng.standard_normal(
            [dim.dim_value or {"n": 2, "t": 3}[dim.dim_param] for dim in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in model.graph.input
    }
    dialect = to_rows(model)
    assert ops(dialect).count("Gemm") == rows
    assert relative_error(run(dialect, feeds), run(model, feeds)) < TOLERANCE


UPSAMPLED = (
    "(float[n, 4, h, w] x) => (float[n, 5, p, q] y) {"
    '[u] u = Resize<mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric">'
    "(x, , twice) [v0] v0 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1],"
    "group = 1>(u, kernel, bias) [y] y = Relu(v0) }"
)


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (8, 5)])
def test_a_convolution_of_a_doubled_picture_is_four_of_the_picture(size: tuple[int, int]) -> None:
    model = parsed(UPSAMPLED)
    feeds = {"x": rng.standard_normal((2, 4, *size)).astype(np.float32)}
    dialect = to_subpixels(model)
    assert ops(dialect).count("Conv") == 4
    assert "Resize" not in ops(dialect)
    assert relative_error(run(dialect, feeds), run(model, feeds)) < TOLERANCE


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("twice", "thrice"),
        ('mode = "nearest",', 'mode = "linear",'),
        ('"floor"', '"ceil"'),
        ('"asymmetric"', '"half_pixel"'),
        ("(x, , twice)", "(x, , , sizes)"),
        ("pads = [1, 1, 1, 1]", "pads = [0, 0, 0, 0]"),
        ("strides = [1, 1]", "strides = [2, 2]"),
        ("Relu(v0)", "Sum(v0, u)"),
    ],
)
def test_what_no_sub_pixels_are_made_of(before: str, after: str) -> None:
    assert before in UPSAMPLED
    assert ops(to_subpixels(parsed(UPSAMPLED.replace(before, after)))).count("Conv") == 1


@pytest.mark.parametrize(("before", "after"), [("axis = -1", "axis = 1"), ("Add(p, b)", "Add(p, x)")])
def test_what_is_not_split(before: str, after: str) -> None:
    text = (
        "(float[n, 2, 12] x) => (float[n, t, s] y) { [wt] wt = Transpose<perm = [1, 0]>(k) [p] p = MatMul(x, wt)"
        "[q] q = Add(p, b) [s] l, r = Split<axis = -1, num_outputs = 2>(q) [y] y = Mul(l, r) }"
    )
    assert "Split" not in ops(split_weights(parsed(text)))
    assert "Split" in ops(split_weights(parsed(text.replace(before, after))))


def test_a_wrong_dialect_is_refused(tmp_path: Path) -> None:
    spec = GraphSpec("net", (TensorSpec("x", "float32", ("n", "t", 4)),), (TensorSpec("y", "float32", ("n", "t", 4)),))
    x = rng.standard_normal((2, 5, 4)).astype(np.float32)
    wanted = run(GATED, {"x": x})
    case = Case(model=GATED, spec=spec, folder=tmp_path, samples=[Sample("normal", {"x": x})], wanted=[wanted])
    dialects = write_dialects(case, {}, None, tmp_path / "model.onnx", TOLERANCE)
    assert dialects["cpu"].model == f"{tmp_path.name}/model.cpu.onnx"
    (tmp_path / "model.cpu.onnx").unlink()
    other = replace(case, wanted=[{"y": wanted["y"] * np.float32(1.1)}])
    with pytest.raises(ExportError, match=r"net for cpu: off by 0\.\d+ of torch's largest output \(normal\), tol"):
        write_dialects(other, {}, None, tmp_path / "model.onnx", TOLERANCE)
    assert not list(tmp_path.iterdir())
