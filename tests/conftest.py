"""Tiny checkpoints, made from configs with torch when a test asks for one, so that the others run without torch."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
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
PROJECTED_CLIP = CLIP | {"hidden_size": 24, "num_hidden_layers": 3, "projection_dim": 20, "hidden_act": "gelu"}
XL_UNET = UNET | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2],
    "attention_head_dim": [2, 4],
    "use_linear_projection": True,
    "cross_attention_dim": CLIP["hidden_size"] + PROJECTED_CLIP["hidden_size"],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": PROJECTED_CLIP["projection_dim"] + 6 * 8,
}
REFINER_UNET = XL_UNET | {
    "cross_attention_dim": PROJECTED_CLIP["hidden_size"],
    "projection_class_embeddings_input_dim": PROJECTED_CLIP["projection_dim"] + 5 * 8,
}
TINY_VAE: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8, 8),
    "num_encoder_blocks": (1, 1, 1, 1),
    "num_decoder_blocks": (1, 1, 1, 1),
}
EULER = SCHEDULER | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}


def pytest_configure() -> None:
    """Tests interrupt themselves and others, which a shell has what it starts in the background ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """What a tiny checkpoint is made from: a text encoder is a config of CLIP, or None where there is none."""

    pipeline: str = "StableDiffusionPipeline"
    text_encoder: dict[str, Any] | None = field(default_factory=lambda: CLIP)
    text_encoder_2: dict[str, Any] | None = None
    image_encoder: dict[str, Any] | None = None
    unet: dict[str, Any] = field(default_factory=lambda: UNET)
    vae: dict[str, Any] = field(default_factory=lambda: VAE)
    scheduler: dict[str, Any] = field(default_factory=lambda: SCHEDULER)
    index: dict[str, Any] = field(default_factory=dict)


TINY = {
    "sd": Tiny(image_encoder=CLIP | {"image_size": 32, "patch_size": 8}),
    "sd2": Tiny(
        text_encoder=CLIP | {"hidden_act": "gelu"},
        unet=UNET | {"attention_head_dim": [2, 4], "use_linear_projection": True},
        scheduler=SCHEDULER | {"prediction_type": "v_prediction"},
    ),
    "sd_inpaint": Tiny(pipeline="StableDiffusionInpaintPipeline", unet=UNET | {"in_channels": 9}),
    "sd_pix2pix": Tiny(pipeline="StableDiffusionInstructPix2PixPipeline", unet=UNET | {"in_channels": 8}),
    "sd_taesd": Tiny(vae=TINY_VAE),
    "lcm": Tiny(
        pipeline="LatentConsistencyModelPipeline",
        unet=UNET | {"time_cond_proj_dim": 12},
        scheduler=SCHEDULER | {"_class_name": "LCMScheduler", "original_inference_steps": 50},
    ),
    "sdxl": Tiny(
        pipeline="StableDiffusionXLPipeline",
        text_encoder=CLIP | {"num_hidden_layers": 3},
        text_encoder_2=PROJECTED_CLIP,
        unet=XL_UNET,
        vae=VAE | {"scaling_factor": 0.13025},
        scheduler=EULER,
        index={"force_zeros_for_empty_prompt": True},
    ),
    "sdxl_inpaint": Tiny(
        pipeline="StableDiffusionXLInpaintPipeline",
        text_encoder_2=PROJECTED_CLIP,
        unet=XL_UNET | {"in_channels": 9},
        vae=VAE | {"scaling_factor": 0.13025},
        scheduler=EULER,
        index={"force_zeros_for_empty_prompt": True},
    ),
    "sdxl_refiner": Tiny(
        pipeline="StableDiffusionXLImg2ImgPipeline",
        text_encoder=None,
        text_encoder_2=PROJECTED_CLIP,
        unet=REFINER_UNET,
        vae=VAE | {"scaling_factor": 0.13025},
        scheduler=EULER,
        index={"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False},
    ),
}
SLOW = TINY.keys() - {"sd", "sdxl"}  # each another export: pytest -m slow


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By a name of `TINY`, a folder as diffusers saves one, with random float16 weights. It draws 64 x 64 pictures."""
    made: dict[str, Path] = {}

    def checkpoint(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(f"tiny-{name}")
            _write_checkpoint(TINY[name], made[name])
        return made[name]

    return checkpoint


@pytest.fixture(scope="session")
def checkpoint(checkpoints: Callable[[str], Path]) -> Path:
    """A Stable Diffusion 1.x of 0.2M weights."""
    return checkpoints("sd")


@pytest.fixture(scope="session")
def bundles(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundles of `checkpoints`. All processes of a run share them: an export takes a minute."""
    from filelock import FileLock

    from edgediffusion.export.write_bundle import export_bundle

    root = tmp_path_factory.getbasetemp()
    shared = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "bundles"
    shared.mkdir(exist_ok=True)

    def bundle(name: str) -> Path:
        with FileLock(shared / f"{name}.lock"):
            if not (shared / name).exists():
                export_bundle(checkpoints(name), shared / name)
        return shared / name

    return bundle


@pytest.fixture(scope="session")
def bundle(bundles: Callable[[str], Path]) -> Path:
    """The bundle of `checkpoint`."""
    return bundles("sd")


def _write_checkpoint(tiny: Tiny, folder: Path) -> None:
    import torch

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        models = _networks(tiny)
        _give_contrast(models["unet"], models["vae"])
    for name, model in models.items():
        model.half().save_pretrained(folder / name)
    index = {
        "_class_name": tiny.pipeline,
        "_diffusers_version": "0.42.0",  # without it diffusers does not load an inpainting pipeline
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", tiny.scheduler["_class_name"]],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "image_encoder": [None, None],
    }
    for name, model in models.items():
        index[name] = ["diffusers" if name in ("unet", "vae") else "transformers", type(model).__name__]
    _write_settings(folder, index | tiny.index, tiny.scheduler, [n for n in models if n.startswith("text_encoder")])


def _networks(tiny: Tiny) -> dict[str, Any]:
    import diffusers
    import transformers

    size = len(VOCABULARY)
    tokens: dict[str, Any] = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1}
    models: dict[str, Any] = {}
    if tiny.text_encoder is not None:
        models["text_encoder"] = transformers.CLIPTextModel(transformers.CLIPTextConfig(**tiny.text_encoder, **tokens))
    if tiny.text_encoder_2 is not None:
        config = transformers.CLIPTextConfig(**tiny.text_encoder_2, **tokens)
        models["text_encoder_2"] = transformers.CLIPTextModelWithProjection(config)
    if tiny.image_encoder is not None:
        vision = transformers.CLIPVisionConfig(**tiny.image_encoder)
        models["image_encoder"] = transformers.CLIPVisionModelWithProjection(vision)
    unet: Any = diffusers.UNet2DConditionModel
    vae: Any = diffusers.AutoencoderTiny if "encoder_block_out_channels" in tiny.vae else diffusers.AutoencoderKL
    return models | {"unet": unet(**tiny.unet), "vae": vae(**tiny.vae)}


def _give_contrast(unet: Any, vae: Any) -> None:
    """Fresh networks give next to nothing; these predict noise of size one and draw pictures of full contrast."""
    import torch

    config = unet.config
    added: dict[str, Any] = {}
    if config.addition_embed_type:
        width = PROJECTED_CLIP["projection_dim"]
        time_ids = (config.projection_class_embeddings_input_dim - width) // config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(4, width), "time_ids": torch.full((4, time_ids), 64.0)}
    latents, context = torch.randn(4, config.in_channels, 8, 8), torch.randn(4, 77, config.cross_attention_dim)
    unet.conv_out.weight /= unet(latents, 500, context, added_cond_kwargs=added).sample.std()
    latents = latents[:, :4] / vae.config.scaling_factor
    # AutoencoderTiny ends in 2 x - 1.
    last, gain = (vae.decoder.conv_out, 1) if hasattr(vae.decoder, "conv_out") else (vae.decoder.layers[-1], 2)
    last.weight /= 2 * vae.decode(latents).sample.std()
    last.bias -= vae.decode(latents).sample.mean() / gain


def _write_settings(folder: Path, index: dict[str, Any], scheduler: dict[str, Any], text_encoders: list[str]) -> None:
    special = {"bos_token": VOCABULARY[-2], **dict.fromkeys(("eos_token", "pad_token", "unk_token"), VOCABULARY[-1])}
    tokenizer_config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    tokenizers = [name.replace("text_encoder", "tokenizer") for name in text_encoders]
    files: dict[str, Any] = {
        "model_index.json": index | {name: ["transformers", "CLIPTokenizer"] for name in tokenizers},
        "scheduler/scheduler_config.json": scheduler,
    }
    for name in tokenizers:
        files[f"{name}/vocab.json"] = {token: i for i, token in enumerate(VOCABULARY)}
        files[f"{name}/tokenizer_config.json"] = tokenizer_config
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    for name in tokenizers:
        (folder / name / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n", encoding="utf-8")
