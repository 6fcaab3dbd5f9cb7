"""What a user of optimum writes for one picture on a CPU: FOLDER PROMPT STEPS SEED PNG [PICTURE to start from]."""

import sys
from typing import Any

import torch
from optimum.onnxruntime import ORTDiffusionPipeline, ORTPipelineForImage2Image
from PIL import Image

folder, prompt, steps, seed, png, *pictures = sys.argv[1:]
pipeline: Any = ORTPipelineForImage2Image if pictures else ORTDiffusionPipeline
pipeline = pipeline.from_pretrained(folder)
pipeline.set_progress_bar_config(disable=True)
settings: dict[str, Any] = {"image": Image.open(pictures[0])} if pictures else {}
settings |= {"num_inference_steps": int(steps), "generator": torch.Generator().manual_seed(int(seed))}
pipeline(prompt, **settings).images[0].save(png)
