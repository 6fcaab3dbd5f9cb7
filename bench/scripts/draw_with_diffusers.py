"""What a user of diffusers writes for one picture on a CPU: CHECKPOINT PROMPT STEPS SEED PNG."""

import sys
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

checkpoint, prompt, steps, seed, png = sys.argv[1:]
pipeline: Any = StableDiffusionPipeline
pipeline = pipeline.from_pretrained(checkpoint, safety_checker=None)  # float32, as it was saved
pipeline.set_progress_bar_config(disable=True)
with torch.inference_mode():
    generator = torch.Generator().manual_seed(int(seed))
    pipeline(prompt, num_inference_steps=int(steps), generator=generator).images[0].save(png)
