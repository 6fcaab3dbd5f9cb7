"""What several exports are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from edgediffusion.export.to_onnx import quiet


@pytest.fixture(scope="session")
def controlnets(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two ControlNets for `checkpoint`, whose last layers are not the zeros that they are in a fresh one."""
    folders = [tmp_path_factory.mktemp("controlnet") for _ in range(2)]
    for seed, folder in enumerate(folders):
        _write_controlnet(checkpoint, folder, seed)
    return folders


@pytest.fixture(scope="session")
def controlnet(controlnets: list[Path]) -> Path:
    """The first of them."""
    return controlnets[0]


def _write_controlnet(checkpoint: Path, folder: Path, seed: int) -> None:
    unet_kind: Any = diffusers.UNet2DConditionModel
    kind: Any = diffusers.ControlNetModel
    with torch.random.fork_rng(), torch.no_grad(), quiet():
        torch.manual_seed(seed)
        model = kind.from_unet(
            unet_kind.from_pretrained(checkpoint / "unet"), conditioning_embedding_out_channels=(8,) * 4
        )
        for block in (*model.controlnet_down_blocks, model.controlnet_mid_block):
            block.weight.normal_(std=0.1)
        model.controlnet_cond_embedding.conv_out.weight.normal_(std=0.5)
        model.half().save_pretrained(folder)
