"""The commands that draw, each run once on a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from edgediffusion.bench import cold_start, pictures
from edgediffusion.bench.processes import execute
from edgediffusion.runtime.manifest import Manifest
from edgediffusion.runtime.metadata import read_parameters


@pytest.mark.slow
def test_all_draw_the_same_picture_and_the_stages_are_known(bundle: Path, tmp_path: Path) -> None:
    commands = pictures.drawing_commands(bundle, tmp_path, lambda line: None)
    for command in commands.values():
        execute(command, tmp_path)
    stages = cold_start.stages(execute(pictures.staged_command(bundle), tmp_path))
    assert list(commands) == [pictures.OURS, pictures.THEIRS]
    assert all(seconds > 0 for seconds in stages.values())
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint", "ours.png", "theirs.png", "staged.png"}
    ours, staged = (read_parameters(tmp_path / name) for name in ("ours.png", "staged.png"))
    assert ours == staged
    assert (ours.prompt, ours.num_inference_steps, ours.seed) == ("a red apple", 20, 0)
    with Image.open(tmp_path / "theirs.png") as theirs:
        assert theirs.size == (ours.width, ours.height)


def test_without_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    lines: list[str] = []
    commands = pictures.drawing_commands(tmp_path / "bundle", tmp_path, lines.append)
    assert list(commands) == [pictures.OURS]
    assert lines == ["torch, diffusers and transformers are not all installed: compared with nothing"]


def test_on_a_gpu_diffusers_draws_there_in_the_precision_of_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "write_checkpoint", lambda *given: None)
    graph = SimpleNamespace(dtype="float16")
    monkeypatch.setattr(Manifest, "read", lambda bundle: SimpleNamespace(graphs={"unet": graph}))
    of = {
        device: pictures.drawing_commands(tmp_path, tmp_path, lambda line: None, guidance_scale=1, device=device)
        for device in ("cpu", "cuda")
    }
    told = ["a red apple", "20", "1", "0", "theirs.png"]
    assert of["cuda"][pictures.THEIRS][-8:] == ["checkpoint", "cuda", "float16", *told]
    assert of["cpu"][pictures.THEIRS][-8:] == ["checkpoint", "cpu", "float32", *told]
    ours = of["cuda"][pictures.OURS]
    assert ours[ours.index("--guidance-scale") + 1] == "1"
