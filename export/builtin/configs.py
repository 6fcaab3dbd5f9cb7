"""The built-in model's networks: Stable Diffusion 1.x in every part, at a hundredth of its size.

Parameters: text encoder 2.5 M, vision tower 0.8 M, autoencoder 3.5 M, UNet 9.0 M; in float16 under 32 MB together.
"""

from __future__ import annotations

from typing import Any

from diffusers import DPMSolverMultistepScheduler
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

#: A network of diffusers or transformers: the types that the two declare fit neither `.to(device)` nor `.config`.
Network = Any

IMAGE_SIZE = 128
MAX_TOKENS = 77
VOCAB_SIZE = 2048
EMBEDDING_SIZE = 256

#: The noise schedule of Stable Diffusion 1.5 (scaled_linear, 1000 steps, offset 1). DDIM, since so small a model is too
#: steep at guidance 7.5 for the samplers of higher order.
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "set_alpha_to_one": False,
    "clip_sample": False,
}

PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": IMAGE_SIZE},
    "do_center_crop": True,
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", SCHEDULER["_class_name"]],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def scheduler() -> Any:
    """The default sampler, over the noise schedule that the UNet is trained on."""
    return DPMSolverMultistepScheduler.from_config(SCHEDULER)  # type: ignore[no-untyped-call]


def text_encoder() -> Network:
    """The text tower. Its `pooler_output` is the text embedding of the contrastive pair: there is no projection."""
    special: dict[str, Any] = {"bos_token_id": VOCAB_SIZE - 2, "eos_token_id": VOCAB_SIZE - 1}
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=EMBEDDING_SIZE,
            intermediate_size=3 * EMBEDDING_SIZE,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=EMBEDDING_SIZE,
            pad_token_id=VOCAB_SIZE - 1,
            **special,
        )
    )


def image_encoder() -> Network:
    """The vision tower; `image_embeds` lie in the space of the text tower's `pooler_output`."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=IMAGE_SIZE,
            patch_size=16,
            projection_dim=EMBEDDING_SIZE,
        )
    )


def vae() -> Network:
    """Eight times down, four latent channels."""
    return AutoencoderKL(
        block_out_channels=(48, 64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=IMAGE_SIZE,
        scaling_factor=0.18215,
    )


def unet() -> Network:
    """Two levels (16 x 16 and 8 x 8), both with cross-attention; heads of 32 channels."""
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 8,
        block_out_channels=(128, 160),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=EMBEDDING_SIZE,
        attention_head_dim=(4, 5),  # diffusers reads this as the number of heads, as in every SD 1.x config
        norm_num_groups=32,
    )
