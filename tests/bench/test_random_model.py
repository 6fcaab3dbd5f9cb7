"""Random weights, exported once. The export itself is `tests/export`'s business."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from edgediffusion.bench import random_model
from edgediffusion.bench.random_configs import MODELS
from edgediffusion.export.sources import open_source

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "vocab_size": 99,
    "projection_dim": 32,
    "hidden_act": "quick_gelu",
}
BLOCKS: dict[str, Any] = {"block_out_channels": [32], "layers_per_block": 1}
VAE: dict[str, Any] = MODELS["sd15"][1]["vae_decoder"] | BLOCKS
VAE |= {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
UNET: dict[str, Any] = MODELS["sd15"][1]["unet"] | BLOCKS | {"cross_attention_dim": 32}
UNET |= {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was exported; `sd15` is tiny."""
    configs = {"text_encoder": TINY, "vae_encoder": VAE, "vae_decoder": VAE, "unet": UNET}
    monkeypatch.setitem(MODELS, "sd15", ("sd", configs))
    calls: list[Path] = []

    def export(checkpoint: Path, out: Path, options: object, report: object) -> None:
        open_source(checkpoint)
        calls.append(out)
        out.mkdir()

    monkeypatch.setattr(random_model, "export_bundle", export)
    return calls


def test_exported_once_for_all_that_decides_it(
    exported: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    first = random_model.random_bundle("sd15", report=lines.append, cache=tmp_path)
    assert len(lines) == 1
    assert random_model.random_bundle("sd15", report=lines.append, cache=tmp_path) == first
    assert exported == [first]
    assert len(lines) == 1
    half = random_model.random_bundle("sd15", "float16", cache=tmp_path)
    monkeypatch.setattr(random_model, "installed_versions", lambda names: {"torch": "3"})
    later = random_model.random_bundle("sd15", cache=tmp_path)
    assert exported == [first, half, later]
    assert len(set(exported)) == 3
    assert {path.name for path in first.parent.iterdir()} == {"bundle", "checkpoint", "lock"}


def test_weights_are_the_same_each_time(exported: list[Path], tmp_path: Path) -> None:
    one, two = (random_model.write_checkpoint("sd15", tmp_path / name) for name in ("one", "two"))
    names = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert [name.parent.name for name in names] == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_export_at_real_size(model: str, tmp_path: Path) -> None:
    """Each component agrees with torch, or nothing is written; its process peaks below 2.2 times its float32 bytes."""
    lines: list[str] = []
    bundle = random_model.random_bundle(model, report=lines.append, cache=tmp_path)
    peaks = {m[1]: int(m[2]) << 20 for line in lines if (m := re.match(r"(\w+): took at most (\d+) MiB", line))}
    assert peaks["unet"] == max(peaks.values())
    half = (bundle.parent / "checkpoint" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert peaks["unet"] < 2.2 * 2 * half
