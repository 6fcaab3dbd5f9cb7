"""Our own operators: compiled and registered anywhere, run on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgediffusion.engines import ort_kernels
from edgediffusion.engines.ort_kernels import LIBRARY, NoKernels, compile_kernels
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


def model(op_type: str, terms: tuple[str, ...], groups: int, *, total: bool, silu: bool) -> bytes:
    """One of our operators, with these of `TERMS`."""
    helper, half, full = onnx.helper, onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    types = {"x": half, "scale": full, "shift": full} | dict.fromkeys(TERMS, half)
    names = ("x", "scale", "shift", *TERMS) if op_type == "BiasGroupNorm" else ("x", "bias", "skip")
    given = [name if name in (*terms, "x", "scale", "shift") else "" for name in names]
    results = ["y", "total" if total else "", "sums"] if op_type == "BiasGroupNorm" else ["y"]
    attributes = {"groups": groups, "epsilon": EPSILON, "activation": int(silu)} if op_type == "BiasGroupNorm" else {}
    node = helper.make_node(op_type, given, results, domain="edgediffusion", **attributes)
    inputs = [helper.make_tensor_value_info(name, types[name], None) for name in given if name]
    outputs = [helper.make_tensor_value_info(name, half, None) for name in results if name and name != "sums"]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("edgediffusion", 1)]
    graph = helper.make_graph([node], "g", inputs, outputs)
    encoded: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return encoded


def with_library() -> onnxruntime.SessionOptions:
    """Options of a session that has them."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(LIBRARY))
    return options


@pytest.mark.parametrize("terms", [(), ("bias",), TERMS])
def test_onnx_runtime_knows_them(terms: tuple[str, ...]) -> None:
    """It finds their schema, and that they are not for the CPU."""
    encoded = model("BiasGroupNorm", terms, 2, total=True, silu=False)
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED.*BiasGroupNorm"):
        onnxruntime.InferenceSession(encoded, with_library(), providers=["CPUExecutionProvider"])


def test_it_refuses_them_with_other_inputs() -> None:
    encoded = model("BiasAdd", ("skip",), 0, total=True, silu=False)
    with pytest.raises(Exception, match=r"Input1|input 1|single"):
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


def test_a_library_that_was_not_compiled_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ort_kernels, "LIBRARY", tmp_path / "ort_operators.so")
    monkeypatch.setattr(ort_kernels, "CHECKS", ())
    ort_kernels._give_kernels.cache_clear()
    with pytest.raises(NoKernels, match=r"ort_operators\.so was not compiled when edgediffusion was installed"):
        ort_kernels.open_session(tmp_path / "model.onnx", onnxruntime.SessionOptions())


def on_gpu(encoded: bytes, feeds: dict[str, Array]) -> list[Array]:
    """What a session on the first GPU gives, twice, bit for bit the same."""
    ort_kernels._give_kernels()
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


@pytest.mark.gpu
@pytest.mark.parametrize(("shape", "groups"), SIZES)
@pytest.mark.parametrize("terms", [(), ("bias",), ("bias", "embedding"), ("bias", "skip"), TERMS])
def test_a_norm_on_the_gpu(shape: tuple[int, ...], groups: int, terms: tuple[str, ...]) -> None:
    given = {name: array for name, array in values(shape).items() if name not in TERMS or name in terms}
    silu, with_total = len(terms) % 2 == 0, "skip" in terms or terms == ("bias",)
    y, *totals = on_gpu(model("BiasGroupNorm", terms, groups, total=with_total, silu=silu), given)
    total, wanted = expected(given, groups, silu=silu)
    assert np.abs(y - wanted).max() < TOLERANCE * np.abs(wanted).max()
    for one in totals:
        assert np.abs(one - total).max() < TOLERANCE * np.abs(total).max()
    assert len(totals) == with_total


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [shape for shape, _ in SIZES])
@pytest.mark.parametrize("terms", [("bias",), ("bias", "skip")])
def test_a_sum_on_the_gpu(shape: tuple[int, ...], terms: tuple[str, ...]) -> None:
    given = {name: array for name, array in values(shape).items() if name in ("x", *terms)}
    (total,) = on_gpu(model("BiasAdd", terms, 0, total=True, silu=False), given)
    wanted = sum(np.float64(array) for array in given.values())
    assert np.abs(total - wanted).max() < TOLERANCE * np.abs(wanted).max()
