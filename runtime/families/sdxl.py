"""Stable Diffusion XL (arXiv:2307.01952): two text encoders, of which the refiner has the second only."""

from __future__ import annotations

from dataclasses import replace

from .base import CONTROLNETS, IMAGE_ENCODER, UNET_AND_VAE, Component, Defaults, Family

_SECOND = (
    Component(folder="text_encoder_2", weights="model.safetensors", tokenizer="tokenizer_2"),
    *UNET_AND_VAE,
    IMAGE_ENCODER,
    *CONTROLNETS,
)

SDXL = Family(
    pipeline_classes=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    components=(Component(folder="text_encoder", weights="model.safetensors", tokenizer="tokenizer"), *_SECOND),
    text_layer=-2,
    force_zeros_for_empty_prompt=True,
    pipelines=("text2image", "image2image", "masked_latents", "handover"),
    defaults=Defaults(guidance_scale=5.0, strength=0.3),
    few_steps=Defaults(num_inference_steps=4, guidance_scale=1.0, strength=0.5),
)
SDXL_INPAINT = replace(
    SDXL,
    pipeline_classes=("StableDiffusionXLInpaintPipeline",),
    pipelines=("inpaint",),
    defaults=Defaults(strength=0.9999),
    few_steps=replace(SDXL.few_steps, strength=0.9999),
)
SDXL_REFINER = replace(
    SDXL,
    pipeline_classes=("StableDiffusionXLImg2ImgPipeline",),
    components=_SECOND,
    pipelines=("image2image", "masked_latents", "handover"),
)
