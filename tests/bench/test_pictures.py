"""The commands that draw, each run once on a tiny model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from edgediffusion.bench import cold_start, pictures
from edgediffusion.bench.processes import execute
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
