"""A bundle goes back to what diffusers opens, with the weights of the checkpoint it was made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from edgediffusion.engines.errors import ExportError, UsageError
from edgediffusion.export import to_diffusers as module
from edgediffusion.export.cli import export
from edgediffusion.export.to_diffusers import to_diffusers
from edgediffusion.export.to_onnx import quiet
from edgediffusion.export.weights import read_header


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Old and new transformers write CLIP's text tower with and without a prefix."""
    return {key.removeprefix("text_model."): tensor.read() for key, tensor in read_header(path).items()}


def test_tensor_for_tensor(bundle: Path, checkpoint: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    out = tmp_path / "out"
    assert export(["--to-diffusers", str(bundle), str(out)]) == 0
    files = {path.relative_to(checkpoint) for path in checkpoint.rglob("*.safetensors")}
    assert {path.relative_to(out) for path in out.rglob("*.safetensors")} == files
    assert not list(out.rglob("*.onnx"))
    for name in files:
        wanted, got = tensors(checkpoint / name), tensors(out / name)
        assert got.keys() == wanted.keys()
        assert all(torch.equal(got[key], value) and got[key].dtype == value.dtype for key, value in wanted.items())
    pipeline: Any = DiffusionPipeline
    with quiet():
        assert type(pipeline.from_pretrained(out)).__name__ == "StableDiffusionPipeline"


def test_integers(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLOATS", {"F32": torch.float32})
    with pytest.raises(ExportError, match=r"image_encoder: \d+ weights are integers, first .*; export it without --w"):
        to_diffusers(bundle, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_taken(bundle: Path, tmp_path: Path) -> None:
    shutil.copyfile(bundle / "model_index.json", tmp_path / "model_index.json")
    with pytest.raises(UsageError, match="already exists; name a new folder, or remove it first"):
        to_diffusers(bundle, tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())
