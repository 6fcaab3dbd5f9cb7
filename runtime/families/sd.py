"""Stable Diffusion 1.x and 2.x, which differ in their configs only: one text encoder, a UNet, a VAE."""

from __future__ import annotations

from dataclasses import replace

from .base import CONTROLNETS, IMAGE_ENCODER, SAFETY_CHECKER, UNET_AND_VAE, Component, Defaults, Family

SD = Family(
    pipeline_classes=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"),
    components=(
        Component(folder="text_encoder", weights="model.safetensors", tokenizer="tokenizer"),
        *UNET_AND_VAE,
        IMAGE_ENCODER,
        SAFETY_CHECKER,
        *CONTROLNETS,
    ),
    scheduler_config={"steps_offset": 1, "clip_sample": False},
)
SD_INPAINT = replace(
    SD,
    pipeline_classes=("StableDiffusionInpaintPipeline",),
    scheduler_config={"steps_offset": 1, "skip_prk_steps": True},
    pipelines=("inpaint",),
    defaults=Defaults(strength=1.0),
    few_steps=replace(SD.few_steps, strength=1.0),
)
SD_PIX2PIX = replace(
    SD,
    pipeline_classes=("StableDiffusionInstructPix2PixPipeline",),
    scheduler_config={},
    pipelines=("pix2pix",),
    branches=3,
)
LCM = replace(
    SD,
    pipeline_classes=("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
    scheduler_config={},
    pipelines=("text2image", "distilled_image2image", "masked_latents"),
    defaults=Defaults(num_inference_steps=4, guidance_scale=8.5),
    few_steps=Defaults(num_inference_steps=4, guidance_scale=8.5),
)
