"""Stable Diffusion 1.x: one CLIP text encoder, a UNet, an AutoencoderKL."""

from __future__ import annotations

from .base import Component, Family

SD1 = Family(
    pipeline_classes=("StableDiffusionPipeline",),
    components=(
        Component(folder="text_encoder", weights="model.safetensors", tokenizer="tokenizer"),
        Component(folder="unet"),
        Component(folder="vae_decoder"),
        Component(folder="vae_encoder"),
        Component(folder="image_encoder", weights="model.safetensors", optional=True),
    ),
    scheduler_config={"steps_offset": 1, "clip_sample": False},
)
