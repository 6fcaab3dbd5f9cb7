"""`edgediffusion verify --against`: the graphs of a bundle beside torch's networks of a checkpoint."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from edgediffusion.runtime.cli import main

WEIGHTS = "diffusion_pytorch_model.safetensors"
Capture = pytest.CaptureFixture[str]


def test_every_graph_agrees(bundle: Path, checkpoint: Path, capsys: Capture) -> None:
    assert main(["verify", str(bundle), "--against", str(checkpoint), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert [c["component"] for c in checks] == ["text_encoder", "vae_encoder", "vae_decoder", "unet", "image_encoder"]
    assert all(0 < c["error"] < 2e-5 and c["tolerance"] == 1e-4 for c in checks)
    assert "timestep" in checks[3]["sample"]


def test_a_graph_of_other_weights(bundle: Path, checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    """One of the UNet's weights, 1 % larger."""
    shutil.copytree(checkpoint / "unet", tmp_path / "unet")
    tensors = load_file(tmp_path / "unet" / WEIGHTS)
    save_file(tensors | {"conv_out.weight": tensors["conv_out.weight"] * 1.01}, tmp_path / "unet" / WEIGHTS)
    assert main(["verify", str(bundle), f"--against={checkpoint}", "--unet", str(tmp_path / "unet")]) == 1
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert dict(lines).pop("unet") == "DISAGREES"
    assert [state for _, state in lines].count("agrees") == 4


def test_another_family(bundle: Path, checkpoints: Callable[[str], Path], capsys: Capture) -> None:
    other = checkpoints("sdxl")
    assert main(["verify", str(bundle), "--against", str(other)]) == 2
    line = f"{other.name}: family sdxl, that of {bundle} is sd; name the checkpoint that it was made from, tiny-sd"
    assert f"edgediffusion: error: {line}" in capsys.readouterr().err


def test_a_checkpoint_without_a_component_of_the_bundle(
    bundle: Path, checkpoint: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(checkpoint, tmp_path / "source", ignore=shutil.ignore_patterns("text_encoder"))
    assert main(["verify", str(bundle), "--against", str(tmp_path / "source")]) == 2
    assert f"source: no text_encoder there, which {bundle} has; add what gives one" in capsys.readouterr().err


def test_a_folder_of_another_tool(bundle: Path, checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(bundle, tmp_path / "theirs", ignore=shutil.ignore_patterns("edgediffusion.json"))
    assert main(["verify", str(tmp_path / "theirs"), "--against", str(checkpoint)]) == 2
    assert "theirs: written with another tool, whose graphs cannot be compared at every size" in capsys.readouterr().err


def test_without_torch(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    for name in [name for name in sys.modules if name.startswith("edgediffusion.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["verify", str(bundle), "--against", "x"]) == 2
    message = "verify --against needs torch; pip install 'edgediffusion[export]'"
    assert capsys.readouterr().err == f"edgediffusion: error: {message}\n"
