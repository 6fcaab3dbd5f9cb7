"""The CUDA provider's dialect, whose operators are computed from their definitions: there need be no GPU."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper, parser
from onnx.external_data_helper import load_external_data_for_model

from edgediffusion.engines.errors import ExportError
from edgediffusion.engines.onnx_relocate import loadable
from edgediffusion.engines.ort_weights import give_weights
from edgediffusion.engines.packed import Packed
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec
from edgediffusion.export import dialect as dialect_module
from edgediffusion.export.dialect import write_dialects
from edgediffusion.export.families import Sample
from edgediffusion.export.passes import clean
from edgediffusion.export.passes.cuda import PASSES, to_cuda_dialect
from edgediffusion.export.passes.cuda.own_kernels import PASSES as OWN_PASSES
from edgediffusion.export.passes.cuda.own_kernels import to_own_kernels
from edgediffusion.export.passes.cuda.portable import to_portable
from edgediffusion.export.passes.cuda.skip_layer_norm import fuse_skip_layer_norm
from edgediffusion.export.passes.cuda.turned_kernels import declare_turned
from edgediffusion.export.passes.cuda.wider_kernels import widen_kernels
from edgediffusion.export.precision import Case, Halved, halve, open_graph
from edgediffusion.export.verify import relative_error
from edgediffusion.runtime.manifest import Manifest

# How often each pass finds its pattern in the tiny networks. Their feed-forwards are too narrow for BiasSplitGelu.
PLACES = {
    "unet": {
        "MultiHeadAttention": 8,
        "GroupNorm": 21,
        "NhwcConv": 33,
        "SkipLayerNormalization": 8,
        "SkipGroupNorm": 15,
        "FusedMatMul": 40,
        "Split": 2,
    },
    "vae_decoder": {"MultiHeadAttention": 1, "GroupNorm": 21, "NhwcConv": 26, "SkipGroupNorm": 7, "FusedMatMul": 4},
    "vae_encoder": {
        "MultiHeadAttention": 1,
        "GroupNorm": 13,
        "Gather": 3,
        "NhwcConv": 18,
        "SkipGroupNorm": 3,
        "FusedMatMul": 4,
    },
    "text_encoder": {"SkipLayerNormalization": 5, "FusedMatMul": 12},
}
# Likewise our own kernels.
OWN_PLACES = {
    "unet": {"BiasGroupNorm": 21, "BiasAdd": 14, "BiasUpsample": 1, "BiasLayerNorm": 4},
    "vae_decoder": {"BiasGroupNorm": 21, "BiasAdd": 4, "BiasUpsample": 3},
    "vae_encoder": {"BiasGroupNorm": 13, "BiasAdd": 6},
    "text_encoder": {},
}
# Transposes of pictures that are left: at both ends, and in a VAE around its attention, which normalises tokens.
TRANSPOSES = {"unet": 2, "vae_decoder": 3, "vae_encoder": 3, "text_encoder": 2}
# The same sums in another order, in float32.
TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=PLACES)
def graph(request: pytest.FixtureRequest, bundle: Path) -> onnx.ModelProto:
    """A portable graph of the tiny model with its weights inside, in float32."""
    model = onnx.load(bundle / request.param / "model.onnx", load_external_data=False)
    load_external_data_for_model(model, str(bundle / request.param))
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Cast" and node.input[0] in weights]:
        value = numpy_helper.to_array(weights[node.input[0]]).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        model.graph.node.remove(node)
    return model


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    return open_graph(model, Path(), [output.name for output in model.graph.output])(feeds)


def feeds(bundle: Path, name: str) -> dict[str, Array]:
    sizes = {"batch": 2, "height": 24, "width": 16, "sequence_length": 77}
    rng = np.random.default_rng(0)
    result = {}
    for tensor in Manifest.read(bundle).graphs[name].spec.inputs:
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in tensor.shape)
        values = rng.integers(1, 400, shape) if tensor.dtype == "int64" else rng.standard_normal(shape)
        result[tensor.name] = values.astype(tensor.dtype)
    return result


def test_each_pass_keeps_what_the_portable_graph_computes(graph: onnx.ModelProto, bundle: Path) -> None:
    inputs = feeds(bundle, graph.graph.name)
    wanted = run(graph, inputs)
    model = graph
    for name, graph_pass in PASSES.items():
        model = graph_pass(model)
        assert relative_error(run(clean(to_portable(model)), inputs), wanted) < TOLERANCE, name
    dialect, changed = to_cuda_dialect(graph)
    assert {op_type: count for op_type, count in changed.items() if count} == PLACES[graph.graph.name]
    assert relative_error(run(clean(to_portable(dialect)), inputs), wanted) < TOLERANCE


def test_our_own_kernels_keep_it_too(graph: onnx.ModelProto, bundle: Path) -> None:
    inputs = feeds(bundle, graph.graph.name)
    wanted = run(graph, inputs)
    model, _ = to_cuda_dialect(graph)
    for name, graph_pass in OWN_PASSES.items():
        model = graph_pass(model)
        assert relative_error(run(clean(to_portable(model)), inputs), wanted) < TOLERANCE, name
    _, changed = to_own_kernels(to_cuda_dialect(graph)[0])
    assert {op_type: count for op_type, count in changed.items() if count} == OWN_PLACES[graph.graph.name]


CONV = "NhwcConv<kernel_shape = [1, 1], strides = [1, 1], pads = [0, 0, 0, 0], dilations = [1, 1], group = 1>"
NORM = "GroupNorm<groups = 2, epsilon = 1e-5, activation = 1, channels_last = 1>"
# Who reads the result c of a convolution with a bias, what is given, and what becomes of it.
READERS = {
    "an output too": (f"y = {NORM}(c, s, t) z = Identity(c)", "c, y", {"BiasGroupNorm": 1}),
    "two norms": (f"y = {NORM}(c, s, t) z = {NORM}(c, t, s)", "y, z", {"BiasGroupNorm": 2, "BiasAdd": 1}),
    "itself": ("y = Add(c, c) z = Identity(c)", "y, z", {"BiasAdd": 1}),
    "itself in a norm": (f"y, z = Skip{NORM}(c, s, t, c)", "y, z", {"BiasGroupNorm": 1, "BiasAdd": 1}),
    "a term without pixels": ("y = Add(c, e)", "y", {"BiasAdd": 1}),
    "another with the same bias": (f"d = {CONV}(c, w, b) y = Add(c, d)", "y", {"BiasAdd": 2}),
    "a norm with a term": (f"y, z = Skip{NORM}(c, s, t, x)", "y, z", {"BiasGroupNorm": 1}),
}


@pytest.mark.parametrize("readers", READERS)
def test_a_bias_is_added_once_for_each_reader(readers: str) -> None:
    body, given, wanted = READERS[readers]
    text = "{" + f"s = Cast<to = 1>(scale) t = Cast<to = 1>(shift) c = {CONV}(x, w, b) {body}" + "}"
    for name in ("x", "c", "d"):  # as `to_channels_last` names pictures
        text = re.sub(rf"\b{name}\b(?!\d)", f'"{name}/channels_last"', text)
    results = [f"float[1, 3, 5, 8] {name}" for name in given.replace("c", '"c/channels_last"').split(", ")]
    text = re.sub(r"\b(NhwcConv|(Skip)?GroupNorm)\b", r"com.microsoft.\1", text)
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> '
        f'g (float[1, 3, 5, 8] "x/channels_last") => ({", ".join(results)}) {text}'
    )
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 1, 1, 8), "b": (8,), "scale": (8,), "shift": (8,), "e": (1, 1, 1, 8)}
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name))
    inputs = {"x/channels_last": rng.standard_normal((1, 3, 5, 8), dtype=np.float32)}
    own, changed = to_own_kernels(model)
    assert {op_type: count for op_type, count in changed.items() if count} == wanted
    assert relative_error(run(clean(to_portable(own)), inputs), run(clean(to_portable(model)), inputs)) < TOLERANCE


def add_ones(model: onnx.ModelProto, **shapes: tuple[int, ...]) -> None:
    """Weights of these names."""
    for name, shape in shapes.items():
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))


def test_an_embedding_of_positions_is_no_bias() -> None:
    """It too is a weight that is added, but has an entry for each token."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> '
        "g (float[1, 8, 8] x, float[1, 8, 8] r) => (float[1, 8, 8] y, float[1, 8, 8] z) "
        "{ a = Add(x, p) y = LayerNormalization<axis = -1>(a, s, t) "
        "m = com.microsoft.FusedMatMul<transB = 1>(x, w) b = Add(m, p) n, _, _, q = "
        "com.microsoft.SkipLayerNormalization<epsilon = 1e-5>(r, x, s, t) z = Add(b, q) }"
    )
    add_ones(model, p=(8, 8), w=(8, 8), s=(8,), t=(8,))
    assert set(to_own_kernels(model)[1].values()) == {0}


@pytest.mark.parametrize(("shape", "inputs"), [((8,), ["x", "r", "s", "t", "p"]), ((8, 8), ["a", "r", "s", "t"])])
def test_a_norm_of_a_sum_takes_a_bias_along_but_no_embedding(shape: tuple[int, ...], inputs: list[str]) -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> '
        "g (float[1, 8, 8] x, float[1, 8, 8] r) => (float[1, 8, 8] y) "
        "{ a = Add(x, p) b = Add(a, r) y = LayerNormalization<axis = -1>(b, s, t) }"
    )
    add_ones(model, p=shape, s=(8,), t=(8,))
    (norm,) = [node for node in fuse_skip_layer_norm(model).graph.node if node.op_type != "Add"]
    assert (norm.op_type, list(norm.input)) == ("SkipLayerNormalization", inputs)


def test_pictures_are_transposed_at_the_ends_only(graph: onnx.ModelProto) -> None:
    dialect, _ = to_cuda_dialect(graph)
    weights = {tensor.name for tensor in dialect.graph.initializer}
    weights |= {name for node in dialect.graph.node for name in node.output if name.endswith("/wider")}
    perms = [
        list(helper.get_attribute_value(node.attribute[0]))
        for node in dialect.graph.node
        if node.op_type == "Transpose" and node.input[0] not in weights
    ]
    assert sum(perm in ([0, 2, 3, 1], [0, 3, 1, 2]) for perm in perms) == TRANSPOSES[graph.graph.name]


def test_a_graph_without_the_patterns_is_left_alone() -> None:
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in ("x", "y")]
    node = helper.make_node("Softmax", ["x"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))
    dialect, changed = to_cuda_dialect(model)
    assert set(changed.values()) == {0}
    assert list(dialect.graph.node) == [node]


def test_the_comparison_can_fail(graph: onnx.ModelProto, bundle: Path) -> None:
    dialect, _ = to_cuda_dialect(graph)
    for node in [node for node in dialect.graph.node if "Norm" in node.op_type][:1]:
        next(entry for entry in node.attribute if entry.name == "epsilon").f = 0.1
    inputs = feeds(bundle, graph.graph.name)
    assert relative_error(run(clean(to_portable(dialect)), inputs), run(graph, inputs)) > 10 * TOLERANCE


SPEC = GraphSpec("net", (TensorSpec("x", "float32", ("n", 4)),), (TensorSpec("y", "float32", ("n", 4)),))


def halved(folder: Path) -> tuple[Case, Halved]:
    """A graph of a sum and its norm, in float16."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[n, 4] x) => (float[n, 4] y) <float[4] w = {1, 1, 1, 1}>'
        "{ [a] a = Relu(x) [b] b = Add(a, x) [c] y = LayerNormalization<axis = -1>(b, w) }"
    )
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    total = x + np.maximum(x, 0)
    y = (total - total.mean(-1, keepdims=True)) / total.std(-1, keepdims=True)
    case = Case(model=model, spec=SPEC, folder=folder, samples=[Sample("normal", {"x": x})], wanted=[{"y": y}])
    return case, halve(case, "float16")


def test_a_dialect_is_written_and_measured(tmp_path: Path) -> None:
    case, half = halved(tmp_path)
    dialects = write_dialects(case, {}, half, tmp_path / "model.onnx", 0)
    assert dialects.keys() == {"cuda"}
    assert dialects["cuda"].model == f"{tmp_path.name}/model.cuda.onnx"
    assert dialects["cuda"].changed["SkipLayerNormalization"] == 1
    assert 0 < dialects["cuda"].parity.error < 1e-2
    assert "SkipLayerNormalization" in {node.op_type for node in onnx.load(tmp_path / "model.cuda.onnx").graph.node}
    assert write_dialects(case, {}, replace(half, dtype="bfloat16"), tmp_path / "other.onnx", 0) == {}
    assert not list(tmp_path.glob("other*"))


def test_a_wrong_dialect_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, half = halved(tmp_path)

    def without_skip(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
        dialect, changed = to_cuda_dialect(model)
        (node,) = [node for node in dialect.graph.node if node.op_type == "SkipLayerNormalization"]
        node.input[0] = node.input[1]
        return dialect, changed

    monkeypatch.setattr(dialect_module, "to_cuda_dialect", without_skip)
    with pytest.raises(ExportError, match=r"net for cuda: off by 0\.\d+ of torch's largest output \(normal\), tol"):
        write_dialects(case, {}, half, tmp_path / "model.onnx", 0)
    assert not list(tmp_path.iterdir())


def test_kernels_are_turned_when_the_graph_is_opened(tmp_path: Path) -> None:
    kernel = np.arange(5 * 4 * 3 * 2, dtype=np.float16).reshape(5, 4, 3, 2)
    (tmp_path / "w.safetensors").write_bytes(b"12345678" + kernel.tobytes())
    place = {"location": "w.safetensors", "offset": "8", "length": str(kernel.nbytes)}
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT16, dims=kernel.shape)
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in place.items())
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float16[5, 3, 2, 4] x) => (float16[5, 3, 2, 4] y)'
        '{ [t] "w/channels_last" = Transpose<perm = [0, 2, 3, 1]>(w) [y] y = Add(x, "w/channels_last") }'
    )
    model.graph.initializer.append(weight)
    turned = declare_turned(model)
    assert [node.op_type for node in turned.graph.node] == ["Add"]
    onnx.save(turned, tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    kept = give_weights(tmp_path / "model.onnx", options)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
    del kept
    (y,) = session.run(None, {"x": np.ones((5, 3, 2, 4), np.float16)})
    assert np.array_equal(y, kernel.transpose(0, 2, 3, 1) + 1)

    contents = {name: (tmp_path / name).read_bytes() for name in ("model.onnx", "w.safetensors")}
    (tmp_path / "model.edz").write_bytes(b"".join(contents.values()))
    members = {f"unet/{name}": memoryview(content) for name, content in contents.items()}
    offsets = {"unet/model.onnx": 0, "unet/w.safetensors": len(contents["model.onnx"])}
    packed = Packed(tmp_path / "model.edz", members, offsets, "unet/model.onnx")
    options = onnxruntime.SessionOptions()
    kept = give_weights(packed, options)
    session = onnxruntime.InferenceSession(loadable(packed, options), options)
    del kept
    assert np.array_equal(session.run(None, {"x": np.ones((5, 3, 2, 4), np.float16)})[0], y)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_a_wider_kernel_is_a_constant_when_the_graph_is_loaded(
    tmp_path: Path, dtype: type[np.generic], size: tuple[int, int]
) -> None:
    """Which the CUDA provider asks of the kernel of a NhwcConv."""
    kind = {np.float32: "float", np.float16: "float16"}[dtype]
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g ({kind}[1, 4, h, w] x) => ({kind}[1, 8, i, j] y)'
        f"<{kind} zero = {{0}}, int64[8] pads = {{0, 0, 0, 0, 0, 0, 1, 1}}>"
        "{ padded = Pad(x, pads, zero) y = Conv<kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 0, 0],"
        " dilations = [1, 1], group = 1>(padded, k) }"
    )
    rng = np.random.default_rng(0)
    model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((8, 4, 3, 3)).astype(dtype), "k"))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    wider = onnxruntime.InferenceSession(widen_kernels(model).SerializeToString(), options)
    plain = onnxruntime.InferenceSession(model.SerializeToString())
    feed = {"x": rng.standard_normal((1, 4, *size)).astype(dtype)}
    np.testing.assert_allclose(
        wider.run(None, feed)[0], plain.run(None, feed)[0], atol=1e-5 if dtype is np.float32 else 1e-2
    )
    nodes = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert [op_type for op_type in nodes if op_type != "Cast"] == ["Conv"]


def test_a_pad_without_a_value_is_left_as_it_is() -> None:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[1, 1, h, w] x) => (float[1, 1, i, j] y)'
        "<int64[8] pads = {0, 0, 0, 0, 0, 0, 1, 1}, float[1, 1, 1, 1] k = {1}>"
        "{ padded = Pad(x, pads) y = Conv(padded, k) }"
    )
    assert [node.op_type for node in widen_kernels(model).graph.node] == ["Pad", "Conv"]
