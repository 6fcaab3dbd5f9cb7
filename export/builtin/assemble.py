"""Puts the trained parts together as a checkpoint in diffusers' format, float16.

python -m edgediffusion.export.builtin.assemble WORK CHECKPOINT
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import load_file, save_file

from . import configs


def bake_latent_statistics(vae: configs.Network, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Give the latents mean 0 and, times `scaling_factor`, standard deviation 1, in each channel.

    Both are affine maps of a channel, so the 1 x 1 convolutions at the autoencoder's waist take them in exactly.

    Args:
        vae: changed in place.
        mean: (4,) of the latents over the training pictures.
        std: (4,) likewise.
    """
    scale = 1 / (std * vae.config.scaling_factor)
    outer, inner = vae.quant_conv, vae.post_quant_conv
    with torch.no_grad():
        inner.bias += torch.einsum("oihw,i->o", inner.weight, mean)
        inner.weight /= scale[None, :, None, None]
        outer.bias[:4] = (outer.bias[:4] - mean) * scale
        outer.weight[:4] *= scale[:, None, None, None]
        outer.bias[4:] += 2 * scale.log()


def assemble(work: Path, checkpoint: Path) -> None:
    """Read `clip.safetensors`, `vae.safetensors`, `unet.safetensors` and `tokenizer/` in `work`; write `checkpoint`."""
    clip = load_file(work / "clip.safetensors")
    for folder, model, state in (
        ("text_encoder", configs.text_encoder(), part(clip, "text.")),
        ("image_encoder", configs.image_encoder(), part(clip, "vision.")),
        ("vae", configs.vae(), load_file(work / "vae.safetensors")),
        ("unet", configs.unet(), load_file(work / "unet.safetensors")),
    ):
        model.load_state_dict(state)
        model.half().save_pretrained(checkpoint / folder)
    _prefix_text_keys(checkpoint / "text_encoder" / "model.safetensors")
    shutil.copytree(work / "tokenizer", checkpoint / "tokenizer")
    _write_json(checkpoint / "scheduler" / "scheduler_config.json", configs.SCHEDULER)
    _write_json(checkpoint / "feature_extractor" / "preprocessor_config.json", configs.PREPROCESSOR)
    _write_json(checkpoint / "model_index.json", configs.MODEL_INDEX | {"_diffusers_version": diffusers.__version__})


def part(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _prefix_text_keys(path: Path) -> None:
    """transformers 5 drops the prefix that every other reader expects."""
    state = load_file(path)
    save_file({"text_model." + name.removeprefix("text_model."): value for name, value in state.items()}, path)


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    assemble(Path(sys.argv[1]), Path(sys.argv[2]))
