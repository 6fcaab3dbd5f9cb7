from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.onnx_file import read_onnx
from edgediffusion.engines.onnx_scales import with_scales
from edgediffusion.runtime.pipeline import BUILTIN

UNET = BUILTIN / "unet" / "model.onnx"


def test_a_graph_without_such_a_resize_says_the_same(tmp_path: Path) -> None:
    model = Path(__file__).parent / "data" / "tiny.onnx"
    edited = tmp_path / model.parent.name / model.name
    edited.parent.mkdir()
    edited.write_bytes(with_scales(model))
    assert read_onnx(edited) == read_onnx(model)
    assert read_onnx(edited).weights == 6


@pytest.mark.parametrize("size", [8, 16])
def test_a_unet_computes_the_same(size: int, tmp_path: Path) -> None:
    edited = tmp_path / "model.onnx"
    edited.write_bytes(with_scales(UNET))
    weights = "diffusion_pytorch_model.safetensors"
    shutil.copy(UNET.with_name(weights), tmp_path)  # ONNX Runtime follows no link out of the folder
    assert b"axes" in UNET.read_bytes()
    rng = np.random.default_rng(0)
    feeds = {
        "sample": rng.normal(size=(2, 4, size, size)).astype(np.float32),
        "timestep": np.array([500], np.float32),
        "encoder_hidden_states": rng.normal(size=(2, 77, 256)).astype(np.float32),
    }
    options = onnxruntime.SessionOptions()
    outputs = [
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for path in (UNET, edited)
    ]
    np.testing.assert_array_equal(*outputs)


def test_no_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"graph")
    with pytest.raises(BundleError, match=r"model\.onnx: not an ONNX file that can be read \(wire type 7\)"):
        with_scales(tmp_path / "model.onnx")
