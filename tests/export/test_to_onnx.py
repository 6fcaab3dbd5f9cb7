"""The exporter's call: free dimensions stay free, attention and splits come out as standard operators."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import GraphSpec, TensorSpec
from edgediffusion.export.families import Sample
from edgediffusion.export.passes.cuda import to_cuda_dialect
from edgediffusion.export.passes.cuda.own_kernels import to_own_kernels
from edgediffusion.export.to_onnx import quiet, to_onnx

SPEC = GraphSpec(
    "attention",
    (TensorSpec("x", "float32", ("batch", 2, "length", 8)),),
    (TensorSpec("y", "float32", ("batch", 2, "length", 8)), TensorSpec("z", "float32", ("batch", 2, "length", 4))),
)


class Attention(nn.Module):
    def __init__(self, mask: str) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        row = torch.arange(x.shape[2])
        causal = row[None] <= row[:, None]
        mask = {"none": None, "bool": causal, "float": causal * 1.5}[self.mask]
        left, right = x.chunk(2, dim=-1)
        scale = 0.3 if self.mask == "float" else None
        return scaled_dot_product_attention(x, x.flip(-1), x, attn_mask=mask, scale=scale), left * right


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention_and_split(mask: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    module = Attention(mask)
    model = to_onnx(module, SPEC, Sample("", {"x": rng.standard_normal((2, 2, 5, 8)).astype(np.float32)}))
    ops = {node.op_type for node in model.graph.node}
    assert {"MatMul", "Softmax", "Split"} <= ops
    assert not any("Sequence" in op for op in ops)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with open_engine(tmp_path / "model.onnx", SPEC, device="cpu") as engine:
        for shape in ((1, 2, 7, 8), (3, 2, 1, 8)):
            x = rng.standard_normal(shape).astype(np.float32)
            got = engine({"x": x})
            for name, want in zip(("y", "z"), module(torch.from_numpy(x)), strict=True):
                np.testing.assert_allclose(got[name], want.numpy(), atol=2e-6)


class Gated(nn.Module):
    """The feed-forward of a transformer block (GEGLU), as wide as the CUDA provider has kernels for."""

    def __init__(self, approximate: str) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2560)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.linear(x).chunk(2, dim=-1)
        gated: Tensor = left * nn.functional.gelu(right, approximate=self.approximate)
        return gated


@pytest.mark.parametrize(("approximate", "fused"), [("none", True), ("tanh", False)])
def test_gelu_is_written_as_backends_fuse_it(approximate: str, fused: bool, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((2, 2, 5, 8)).astype(np.float32)
    module = Gated(approximate).eval()
    spec = GraphSpec("gated", SPEC.inputs, (TensorSpec("y", "float32", ("batch", 2, "length", 1280)),))
    model = to_onnx(module, spec, Sample("", {"x": x}))
    for initializer in model.graph.initializer:
        if initializer.name in module.state_dict():
            weight = module.state_dict()[initializer.name].numpy()
            initializer.CopyFrom(numpy_helper.from_array(weight, initializer.name))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(session.run(None, {"x": x})[0], wanted, atol=1e-5)
    assert ("Gelu" in {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}) == fused
    dialect, changed = to_cuda_dialect(model)
    assert changed["BiasSplitGelu"] == to_own_kernels(dialect)[1]["BiasGeglu"] == fused


class Undecomposed(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.rot90(x, 2, (0, 1)) if self.kind == "without a translation" else x * 2
        if self.kind == "changed in place":
            y[:, :1].add_(1.0)
        return y, y[..., :4]


@pytest.mark.parametrize("kind", ["changed in place", "without a translation"])
def test_what_has_to_be_decomposed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Undecomposed(kind).eval()
    x = np.random.default_rng(0).standard_normal((2, 2, 5, 8), np.float32)
    model = to_onnx(module, SPEC, Sample("traced", {"x": x}))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with open_engine(tmp_path / "model.onnx", SPEC) as engine:
        got = engine({"x": x})
    want = module(torch.from_numpy(x))
    np.testing.assert_allclose(got["y"], want[0].detach(), atol=1e-6)
    np.testing.assert_allclose(got["z"], want[1].detach(), atol=1e-6)


def test_quiet_silences_and_restores(caplog: pytest.LogCaptureFixture) -> None:
    with quiet():
        warnings.warn("not for the user", stacklevel=1)
        logging.getLogger("torch.onnx").warning("nor this")
    logging.getLogger("torch.onnx").warning("but this")
    assert [record.message for record in caplog.records] == ["but this"]
    with pytest.warns(UserWarning, match="again"):
        warnings.warn("again", stacklevel=1)
