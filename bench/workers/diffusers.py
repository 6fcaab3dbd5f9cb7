"""diffusers with PyTorch, eager or through torch.compile, as `serve` runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers import DiffusionPipeline

Call = Callable[[], Mapping[str, Any]]
_NO_CHECKER = {"safety_checker": None}


def load(request: Mapping[str, Any]) -> dict[str, Callable[..., Call]]:
    """Open the checkpoint in `request["dtype"]`; with `compile`, as diffusers' documentation has it. See `serve`."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(request["threads"])
    device = "cpu" if request["device"] == "cpu" or not torch.cuda.is_available() else "cuda"
    dtype = getattr(torch, request["dtype"])
    kind: Any = DiffusionPipeline
    checker = {} if request["family"].startswith("sdxl") else _NO_CHECKER
    pipeline = kind.from_pretrained(request["source"], torch_dtype=dtype, local_files_only=True, **checker)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    if device == "cuda":
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if request.get("compile"):
        mode = "reduce-overhead" if device == "cuda" else "default"
        pipeline.unet = torch.compile(pipeline.unet, mode=mode, fullgraph=True)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, mode=mode, fullgraph=True)
    to_device = partial(_to_device, device=device, dtype=dtype)
    return {
        "text_encoder": partial(_text_encoder, pipeline, to_device),
        "unet": partial(_unet, pipeline, to_device),
        "vae_decoder": partial(_vae_decoder, pipeline, to_device),
        "picture": partial(_picture, pipeline),
    }


def _to_device(array: Any, device: str, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(array).to(device)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _text_encoder(pipeline: Any, to_device: Any, feeds: dict[str, Any]) -> Call:
    ids = to_device(feeds["input_ids"])
    return lambda: {"last_hidden_state": _host(pipeline.text_encoder(ids)[0])}


def _unet(pipeline: Any, to_device: Any, feeds: dict[str, Any]) -> Call:
    sample, timestep, states = (to_device(feeds[n]) for n in ("sample", "timestep", "encoder_hidden_states"))
    names = ("text_embeds", "time_ids")
    added = {name: to_device(feeds[name]) for name in names if name in feeds} or None

    def run() -> Mapping[str, Any]:
        # Latents go to the device and come back at each step of ours; diffusers' stay there, and so does its clock.
        output = pipeline.unet(sample, timestep, states, added_cond_kwargs=added, return_dict=False)[0]
        return {"out_sample": _host(output)}

    return run


def _vae_decoder(pipeline: Any, to_device: Any, feeds: dict[str, Any]) -> Call:
    latents = to_device(feeds["latent_sample"])
    return lambda: {"sample": _host(pipeline.vae.decode(latents, return_dict=False)[0])}


def _picture(pipeline: Any, _: object, *, prompt: str, seed: int, steps: int, batch: int = 1, **settings: Any) -> Call:
    settings |= {"num_inference_steps": steps, "num_images_per_prompt": batch, "output_type": "np"}

    def draw() -> Mapping[str, Any]:
        generators = [torch.Generator().manual_seed(seed + k) for k in range(batch)]
        images = pipeline(
            prompt, generator=generators, latents=_noise(pipeline, generators, **settings), **settings
        ).images
        return {"images": np.round(images * 255).astype(np.uint8)}

    return draw


def _noise(pipeline: Any, generators: list[torch.Generator], *, height: int, width: int, **_: object) -> torch.Tensor:
    """In float32, as ours is: for a pipeline in float16 torch would draw other numbers."""
    factor = pipeline.vae_scale_factor
    shape = (1, pipeline.vae.config.latent_channels, height // factor, width // factor)
    return torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(pipeline.dtype)


def _host(tensor: torch.Tensor) -> Any:
    return tensor.float().cpu().numpy()


def versions() -> dict[str, str]:
    """See `serve`."""
    return {m.__name__: str(m.__version__) for m in (torch, diffusers, transformers)}
