"""What a user of diffusers writes for one picture: CHECKPOINT DEVICE DTYPE PROMPT STEPS GUIDANCE_SCALE SEED PNG."""

import sys
from typing import Any

import torch
from diffusers import DiffusionPipeline

checkpoint, device, dtype, prompt, steps, guidance_scale, seed, png = sys.argv[1:]
pipeline: Any = DiffusionPipeline
parts = dict.fromkeys(
    ("safety_checker", "image_encoder", "feature_extractor")
)  # no pipeline of text to image needs them
pipeline = pipeline.from_pretrained(checkpoint, torch_dtype=getattr(torch, dtype), **parts).to(device)
pipeline.set_progress_bar_config(disable=True)
with torch.inference_mode():
    generator = torch.Generator().manual_seed(int(seed))
    settings = {"num_inference_steps": int(steps), "guidance_scale": float(guidance_scale), "generator": generator}
    pipeline(prompt, **settings).images[0].save(png)
