"""The real command in processes of its own: a single file becomes a bundle that draws, interrupted on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from edgediffusion.runtime.manifest import Manifest

from .originals import ORIGINALS, models, state, write
from .originals import controlnet as original

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="has no process groups")]
COMMAND = [sys.executable, "-c", "from edgediffusion.runtime.cli import script; script()"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of SD 1.x and a ControlNet for it, both in the original layout."""
    folder = tmp_path_factory.mktemp("sources")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        found: dict[str, Any] = models(ORIGINALS["sd1"])
        kind: Any = diffusers.ControlNetModel
        controlnet = kind.from_unet(found["unet"], conditioning_embedding_out_channels=(8,) * 4)
        controlnet.controlnet_mid_block.weight.normal_(std=0.1)
    tensors = {f"control_model.{key}": t for key, t in original(state(controlnet), controlnet.config).items()}
    save_file({key: t.contiguous() for key, t in tensors.items()}, folder / "canny.safetensors")
    return write(folder / "sd1.safetensors", ORIGINALS["sd1"], found), folder / "canny.safetensors"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True)


def interrupted(kill: Callable[[int, int], None], stage: str, *arguments: str | Path) -> list[str]:
    """The lines that an export writes when it is interrupted a second after it has reported `stage`."""
    command = [*COMMAND, *map(str, arguments)]
    lines = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line.rstrip())
            if lines[-1] == stage:
                time.sleep(1)
                kill(process.pid, signal.SIGINT)
    assert process.returncode == 130
    return lines


@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_nothing_is_left(sources: tuple[Path, Path], tmp_path: Path, kill: Callable[[int, int], None]) -> None:
    lines = interrupted(kill, "text_encoder: exporting", "export", sources[0], tmp_path / "out")
    assert lines == ["loading torch", "text_encoder: exporting", "edgediffusion: interrupted"]
    assert not list(tmp_path.iterdir())


def test_a_single_file_with_a_controlnet(sources: tuple[Path, Path], tmp_path: Path) -> None:
    file, controlnet = sources
    out, picture, control = (tmp_path / name for name in ("out", "picture.png", "control.png"))
    command = ("export", file, out, "--controlnet", controlnet, "--resume")
    lines = interrupted(os.killpg, "vae_decoder: exporting", *command)
    assert lines[-2:] == ["vae_decoder: exporting", "edgediffusion: interrupted"]
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    exported = [line.split(":")[0] for line in done.stderr.splitlines() if line.endswith(": exporting")]
    assert exported == ["vae_decoder", "controlnet", "unet"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    manifest = Manifest.read(out)
    assert manifest.source == "sd1.safetensors"
    assert manifest.source_sha256.keys() == {
        f"{file.parent.name}/sd1.safetensors",
        f"{file.parent.name}/canny.safetensors",
    }
    for more in ((), ("--against", file, "--controlnet", controlnet)):
        verified = run("verify", out, *more)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert "unet.controlnet  agrees" in verified.stdout
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(control)
    settings = ["--size", "64x64", "--num-inference-steps", "2", "--seed", "0"]
    drawn = run("generate", "a red apple", "--bundle", out, "--control-image", control, "-o", picture, *settings)
    assert (drawn.returncode, drawn.stdout, drawn.stderr) == (0, f"{picture}\n", "")
    with Image.open(picture) as image:
        assert image.size == (64, 64)
