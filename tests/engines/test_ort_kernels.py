"""Our own operators: compiled and registered anywhere, run on a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgediffusion.engines import ort, ort_kernels, ort_library, probe, registry
from edgediffusion.engines.ort_kernels import NoKernels, compile_kernels
from edgediffusion.engines.ort_library import LIBRARY, SOURCES
from edgediffusion.engines.spec import Array

onnx = pytest.importorskip("onnx")

EPSILON = 1e-5
TERMS = ("bias", "embedding", "skip")
# (pictures, height, width, channels), groups: the sizes of SD 1.5's networks, and odd ones.
SIZES = [
    ((2, 64, 64, 320), 32),
    ((2, 32, 32, 960), 32),
    ((2, 16, 16, 2560), 32),
    ((2, 8, 8, 1280), 32),
    ((1, 512, 512, 128), 32),
    ((1, 256, 256, 512), 32),
    ((3, 5, 7, 40), 8),
    ((5, 3, 1, 4096), 1),
    ((200, 2, 2, 8), 4),
    ((1, 1, 1, 16), 2),
]


INPUTS = {
    "BiasGroupNorm": ("x", "scale", "shift", *TERMS),
    "BiasAdd": ("x", "bias", "skip"),
    "BiasUpsample": ("x", "bias", "skip", "like"),
    "BiasLayerNorm": ("x", "scale", "shift", "bias"),
    "BiasGeglu": ("x", "bias"),
}


def model(op_type: str, given: Iterable[str], results: Iterable[str], **attributes: float) -> bytes:
    """One of our operators, with these of its inputs and results; the others are left out."""
    helper, half, full = onnx.helper, onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    types = dict.fromkeys(("scale", "shift"), full if op_type == "BiasGroupNorm" else half)
    names = [name if name in given else "" for name in INPUTS[op_type]]
    node = helper.make_node(op_type, names, list(results), domain="edgediffusion", **attributes)
    inputs = [helper.make_tensor_value_info(name, types.get(name, half), None) for name in names if name]
    outputs = [helper.make_tensor_value_info(name, half, None) for name in results if name not in ("", "sums")]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("edgediffusion", 1)]
    graph = helper.make_graph([node], "g", inputs, outputs)
    encoded: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return encoded


def group_norm(given: Iterable[str], groups: int, *, total: bool, silu: bool) -> bytes:
    """Of a BiasGroupNorm."""
    results = "y", "total" if total else "", "sums"
    return model("BiasGroupNorm", given, results, groups=groups, epsilon=EPSILON, activation=int(silu))


def with_library() -> onnxruntime.SessionOptions:
    """Options of a session that has them."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(LIBRARY))
    return options


NEEDED = {"BiasGroupNorm": 3, "BiasAdd": 2, "BiasUpsample": 2, "BiasLayerNorm": 3, "BiasGeglu": 2}
RESULTS = {"BiasGroupNorm": ("y", "total", "sums"), "BiasLayerNorm": ("y", "total")}


@pytest.mark.parametrize("op_type", INPUTS)
@pytest.mark.parametrize("whole", [True, False])
def test_onnx_runtime_knows_them(op_type: str, whole: bool) -> None:
    """It finds their schema, with all inputs or those that are needed, and that they are not for the CPU."""
    inputs = INPUTS[op_type][: None if whole else NEEDED[op_type]]
    encoded = model(op_type, inputs, RESULTS.get(op_type, ("y",)))
    with pytest.raises(Exception, match=rf"NOT_IMPLEMENTED.*{op_type}"):
        onnxruntime.InferenceSession(encoded, with_library(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("op_type", INPUTS)
def test_it_refuses_them_without_what_they_need(op_type: str) -> None:
    encoded = model(op_type, INPUTS[op_type][: NEEDED[op_type] - 1], RESULTS.get(op_type, ("y",)))
    with pytest.raises(Exception, match=rf"{op_type}.*input {NEEDED[op_type] - 1} is marked single"):
        onnxruntime.InferenceSession(encoded, with_library(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("capability", ["75", "87", "90", "120"])
def test_they_are_compiled_without_a_gpu(capability: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    cubin = compile_kernels(capability)
    assert cubin.startswith(b"\x7fELF")
    assert b"add_and_sum" in cubin
    assert b"normalize" in cubin


def test_a_compiler_that_does_not_know_the_gpu_is_told() -> None:
    pytest.importorskip("cuda.bindings.nvrtc")
    with pytest.raises(NoKernels, match=r"NVRTC does not work here \(NVRTC_ERROR_INVALID_OPTION\)"):
        compile_kernels("1")


@pytest.fixture
def given_anew() -> Iterator[None]:
    """The kernels are not given yet, nor are those of a test kept for others."""
    ort_kernels.give_kernels.cache_clear()
    yield
    ort_kernels.give_kernels.cache_clear()


@pytest.mark.usefixtures("given_anew")
def test_a_library_that_was_not_compiled_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ort_library, "LIBRARY", tmp_path / "ort_operators.so")
    monkeypatch.setattr(ort_kernels, "CHECKS", ())
    with pytest.raises(
        NoKernels, match=r"our own kernels are missing \(.*ort_operators\.so: cannot open.*install a C compiler"
    ):
        ort_kernels.open_session(tmp_path / "model.onnx", onnxruntime.SessionOptions())


@pytest.mark.usefixtures("given_anew")
def test_a_library_of_other_sources_or_another_machine_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in SOURCES:
        content = (ort_library.FOLDER / name).read_bytes()
        (tmp_path / name).write_bytes(content + b"\n" * (name == "kernels.cu"))
    monkeypatch.setattr(ort_library, "FOLDER", tmp_path)
    with pytest.raises(NoKernels, match="compiled of other sources than are here; install edgediffusion anew"):
        ort_kernels.give_kernels()
    monkeypatch.setattr(ort_library, "LIBRARY", tmp_path / "kernels.cu")
    with pytest.raises(NoKernels, match=r"our own kernels are missing \(.*invalid ELF header"):
        ort_kernels.give_kernels()


@pytest.mark.usefixtures("given_anew")
def test_a_compiler_that_is_newer_than_the_driver_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a graph is opened, so that the provider's own dialect is taken."""
    pytest.importorskip("cuda.bindings.nvrtc")
    monkeypatch.setattr(ort_kernels, "_capability", lambda: "90")
    monkeypatch.setattr(ort_kernels, "_driver_version", lambda: 12)
    monkeypatch.setattr(ort_kernels, "built_for", lambda: 12)
    with pytest.raises(NoKernels, match=r"of CUDA 13, the driver knows CUDA up to 12; pip .*'cuda-bindings==12\.\*'"):
        ort_kernels.give_kernels()
    monkeypatch.setattr(ort_kernels, "_driver_version", lambda: 13)
    ort_kernels.give_kernels()


@pytest.mark.usefixtures("given_anew")
def test_elsewhere_than_on_linux_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(NoKernels, match="our own kernels are for Linux; take Linux, or WSL"):
        ort_kernels.give_kernels()


def test_without_them_the_providers_own_dialect_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing() -> None:
        raise NoKernels("there is no compiler", "get one")

    opened = []

    def on_cpu(model: Path, options: onnxruntime.SessionOptions, *, exact: bool) -> onnxruntime.InferenceSession:
        opened.append(model)
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "prepare", missing)
    monkeypatch.setattr(ort, "open_session", on_cpu)
    dialects = {"cuda": probe.MODEL, ort_kernels.DIALECT: tmp_path / "model.cuda-kernels.onnx"}
    with pytest.warns(ort.Slower, match="slower than it could be: there is no compiler; get one"):
        registry.open_engine(tmp_path / "model.onnx", probe.SPEC, device="cuda", dialects=dialects).close()
    assert opened == [probe.MODEL]


def on_gpu(encoded: bytes, feeds: dict[str, Array]) -> list[Array]:
    """What a session on the first GPU gives, twice, bit for bit the same."""
    ort_kernels.give_kernels()
    onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(encoded, with_library(), providers=["CUDAExecutionProvider"])
    first, second = session.run(None, feeds), session.run(None, feeds)
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    return list(first)


def values(shape: tuple[int, ...]) -> dict[str, Array]:
    """Inputs whose channels have means and deviations of their own."""
    rng = np.random.default_rng(sum(shape))
    pictures, channels = shape[0], shape[-1]

    def normal(*size: int) -> Array:
        return rng.standard_normal(size, dtype=np.float32)

    return {
        "x": (normal(*shape) * np.exp(normal(channels)) + normal(channels)).astype(np.float16),
        "scale": normal(channels),
        "shift": normal(channels),
        "bias": normal(channels).astype(np.float16),
        "embedding": normal(pictures, 1, 1, channels).astype(np.float16),
        "skip": normal(*shape).astype(np.float16),
    }


def expected(given: dict[str, Array], groups: int, *, silu: bool) -> tuple[Array, Array]:
    """The sum and its norm, in float64."""
    total: Any = sum(np.float64(given[name]) for name in ("x", *TERMS) if name in given)
    pictures, height, width, channels = total.shape
    grouped = total.reshape(pictures, height * width, groups, channels // groups)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    y = ((grouped - mean) / np.sqrt(variance + EPSILON)).reshape(total.shape) * given["scale"] + given["shift"]
    return total, y / (1 + np.exp(-y)) if silu else y


# Two roundings to float16, 2^-11 each, of values up to the largest.
TOLERANCE = 2e-3


def agree(result: Array, wanted: Array) -> None:
    assert result.shape == wanted.shape
    assert np.abs(result - wanted).max() < TOLERANCE * np.abs(wanted).max()


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "groups"), SIZES)
@pytest.mark.parametrize("terms", [(), ("bias",), ("bias", "embedding"), ("bias", "skip"), TERMS])
def test_a_group_norm(shape: tuple[int, ...], groups: int, terms: tuple[str, ...]) -> None:
    given = {name: array for name, array in values(shape).items() if name not in TERMS or name in terms}
    silu, with_total = len(terms) % 2 == 0, "skip" in terms or terms == ("bias",)
    y, *totals = on_gpu(group_norm(given, groups, total=with_total, silu=silu), given)
    total, wanted = expected(given, groups, silu=silu)
    agree(y, wanted)
    for one in totals:
        agree(one, total)
    assert len(totals) == with_total


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*(shape for shape, _ in SIZES), (2, 77, 320)])
@pytest.mark.parametrize("terms", [("bias",), ("bias", "skip")])
def test_a_sum(shape: tuple[int, ...], terms: tuple[str, ...]) -> None:
    given = {name: array for name, array in values(shape).items() if name in ("x", *terms)}
    wanted: Any = sum(np.float64(array) for array in given.values())
    agree(on_gpu(model("BiasAdd", given, ["y"]), given)[0], wanted)
    if len(shape) == 4:
        agree(on_gpu(model("BiasUpsample", given, ["y"]), given)[0], wanted.repeat(2, 1).repeat(2, 2))


@pytest.mark.gpu
@pytest.mark.parametrize(("height", "width"), [(8, 10), (7, 10), (8, 9), (7, 9)])
@pytest.mark.parametrize("terms", [("bias",), ("bias", "skip")])
def test_a_sum_is_doubled_to_the_size_of_another_picture(height: int, width: int, terms: tuple[str, ...]) -> None:
    given = {name: array for name, array in values((2, 4, 5, 24)).items() if name in ("x", *terms)}
    wanted: Any = sum(np.float64(array) for array in given.values())
    given["like"] = np.zeros((2, height, width, 8), np.float16)
    doubled = wanted.repeat(2, 1).repeat(2, 2)[:, :height, :width]
    agree(on_gpu(model("BiasUpsample", given, ["y"]), given)[0], doubled)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(6, 10), (8, 11), (8,)])
def test_another_size_than_the_double_is_refused(size: tuple[int, ...]) -> None:
    given = {name: array for name, array in values((2, 4, 5, 24)).items() if name in ("x", "bias")}
    given["like"] = np.zeros((2, *size, 8), np.float16)
    with pytest.raises(Exception, match="twice the height and width, or one less"):
        on_gpu(model("BiasUpsample", given, ["y"]), given)


@pytest.mark.gpu
@pytest.mark.parametrize("op_type", ["BiasAdd", "BiasUpsample"])
def test_a_skip_of_another_shape_is_refused(op_type: str) -> None:
    given = {name: array for name, array in values((1, 4, 4, 16)).items() if name in INPUTS[op_type]}
    with pytest.raises(Exception, match="add terms of one shape"):
        on_gpu(model(op_type, given, ["y"]), given | {"skip": given["skip"][:, :1]})


ATTRIBUTES = {
    "BiasGroupNorm": {"groups": 2, "epsilon": EPSILON, "activation": 0},
    "BiasLayerNorm": {"epsilon": EPSILON},
}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("op_type", "term"), [(op, term) for op, terms in INPUTS.items() for term in terms[1:] if term != "like"]
)
def test_a_term_that_does_not_fit_is_refused(op_type: str, term: str) -> None:
    """Of which a kernel would read what lies behind it."""
    given = {name: array for name, array in values((2, 4, 4, 16)).items() if name in INPUTS[op_type]}
    if op_type != "BiasGroupNorm":
        given = {name: array.astype(np.float16) for name, array in given.items()}
    encoded = model(op_type, given, RESULTS.get(op_type, ("y",)), **ATTRIBUTES.get(op_type, {}))
    on_gpu(encoded, given)
    shorter = [given[term][..., :8], *([given[term][:1]] if term in ("embedding", "skip") else [])]
    for wrong in shorter:
        with pytest.raises(Exception, match=r"terms for as many channels|terms of one shape"):
            on_gpu(encoded, given | {term: wrong})


@pytest.mark.gpu
@pytest.mark.parametrize("op_type", INPUTS)
@pytest.mark.parametrize("channels", [0, 12])
def test_other_numbers_of_channels_are_refused(op_type: str, channels: int) -> None:
    given = {name: array for name, array in values((1, 2, 2, channels)).items() if name in INPUTS[op_type]}
    if op_type != "BiasGroupNorm":
        given = {name: array.astype(np.float16) for name, array in given.items()}
    encoded = model(op_type, given, RESULTS.get(op_type, ("y",)), **ATTRIBUTES.get(op_type, {}))
    with pytest.raises(Exception, match="a multiple of 8 channels"):
        on_gpu(encoded, given)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 4096, 320), (2, 64, 1280), (1, 3, 8), (3, 5, 2048), (1, 1, 264)])
@pytest.mark.parametrize("terms", [(), ("bias",)])
def test_a_layer_norm(shape: tuple[int, ...], terms: tuple[str, ...]) -> None:
    given = {
        name: array.astype(np.float16) for name, array in values(shape).items() if name not in TERMS or name in terms
    }
    y, total = on_gpu(model("BiasLayerNorm", given, ["y", "total"], epsilon=EPSILON), given)
    whole: Any = np.float64(given["x"]) + given.get("bias", 0)
    mean, variance = whole.mean(-1, keepdims=True), whole.var(-1, keepdims=True)
    agree(total, whole)
    agree(y, (whole - mean) / np.sqrt(variance + EPSILON) * given["scale"] + given["shift"])


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 4096, 2560), (2, 64, 10240), (1, 3, 16), (3, 5, 48)])
def test_a_gated_gelu(shape: tuple[int, ...]) -> None:
    given = {name: array for name, array in values(shape).items() if name in ("x", "bias")}
    left, right = np.split(np.float64(given["x"]) + given["bias"], 2, axis=-1)
    erf = np.vectorize(math.erf)(right / math.sqrt(2))
    agree(on_gpu(model("BiasGeglu", given, ["y"]), given)[0], left * right * (1 + erf) / 2)
