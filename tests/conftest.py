"""Tiny checkpoints, made from configs with torch when a test asks for one, so that the others run without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

LETTERS = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
VOCABULARY = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
CLIP: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 32,
    "hidden_act": "quick_gelu",
}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
}
VAE: dict[str, Any] = {
    "sample_size": 64,
    "layers_per_block": 1,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion 1.x of 0.2M random float16 weights, as diffusers saves one. It draws 64 x 64 pictures."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    folder, size = tmp_path_factory.mktemp("tiny"), len(VOCABULARY)
    diffusion: Any = UNet2DConditionModel
    autoencoder: Any = AutoencoderKL
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        models: dict[str, Any] = {
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(**CLIP, vocab_size=size, bos_token_id=size - 2, eos_token_id=size - 1)
            ),
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP, image_size=32, patch_size=8)),
            "unet": diffusion(**UNET),
            "vae": autoencoder(**VAE),
        }
        # Fresh networks give next to nothing; these predict noise of size one and draw pictures of full contrast.
        latents, context = torch.randn(4, 4, 8, 8), models["text_encoder"](torch.arange(77)[None]).last_hidden_state
        unet, vae = models["unet"], models["vae"]
        unet.conv_out.weight /= unet(latents, 500, context.expand(4, -1, -1)).sample.std()
        vae.decoder.conv_out.weight /= 2 * vae.decode(latents / 0.18215).sample.std()
    for name, model in models.items():
        model.half().save_pretrained(folder / name)
    _write_settings(folder)
    return folder


def _write_settings(folder: Path) -> None:
    special = {"bos_token": VOCABULARY[-2], **dict.fromkeys(("eos_token", "pad_token", "unk_token"), VOCABULARY[-1])}
    vocabulary = {token: i for i, token in enumerate(VOCABULARY)}
    files: dict[str, Any] = {
        "model_index.json": INDEX,
        "scheduler/scheduler_config.json": SCHEDULER,
        "tokenizer/vocab.json": vocabulary,
        "tokenizer/tokenizer_config.json": special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n", encoding="utf-8")


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `checkpoint`."""
    from edgediffusion.export.write_bundle import export_bundle

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(checkpoint, folder)
    return folder
