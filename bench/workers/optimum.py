"""optimum's ONNX Runtime pipeline on the same bundle, as `serve` runs it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnxruntime
import torch
from optimum.onnxruntime import ORTDiffusionPipeline

Call = Callable[[], Mapping[str, Any]]
# The parts, and what their first output is called in the graph.
_OUTPUTS = {"text_encoder": "last_hidden_state", "unet": "out_sample", "vae_decoder": "sample"}


def load(request: Mapping[str, Any]) -> dict[str, Callable[..., Call]]:
    """Open the bundle, which is an export of optimum's layout; see `serve`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    provider = "CPUExecutionProvider" if request["device"] == "cpu" else request["providers"][0]
    pipeline = ORTDiffusionPipeline.from_pretrained(
        request["source"], provider=provider, session_options=options, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    parts: dict[str, Callable[..., Call]] = {
        name: partial(_part, getattr(pipeline, name), output) for name, output in _OUTPUTS.items()
    }
    return parts | {"picture": partial(_picture, pipeline)}


def _part(part: Any, name: str, feeds: dict[str, Any]) -> Call:
    tensors = {key: torch.from_numpy(array) for key, array in feeds.items()}
    if "timestep" in tensors:
        tensors["timestep"] = tensors["timestep"][0]  # as diffusers' pipelines pass it
    return lambda: {name: part(**tensors, return_dict=False)[0].numpy()}


def _picture(pipeline: Any, _: object, *, prompt: str, seed: int, steps: int, batch: int = 1, **settings: Any) -> Call:
    settings |= {"num_inference_steps": steps, "num_images_per_prompt": batch}

    def draw() -> Mapping[str, Any]:
        generators = [torch.Generator().manual_seed(seed + k) for k in range(batch)]
        images = pipeline(prompt, generator=generators, **settings).images
        return {"images": np.stack([np.asarray(image) for image in images])}

    return draw


def versions() -> dict[str, str]:
    """See `serve`."""
    names = ("optimum", "optimum-onnx", "onnxruntime", "torch", "diffusers", "transformers")
    return {name: importlib.metadata.version(name) for name in names}
