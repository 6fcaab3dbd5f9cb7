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
# What text to image does without, and the checkpoint may have.
_WITHOUT = ("safety_checker", "image_encoder", "feature_extractor")
_SIZES = 64  # that one process may be asked for


def load(request: Mapping[str, Any]) -> dict[str, Callable[..., Call]]:
    """Open the checkpoint in `request["dtype"]`; with `compile`, as diffusers' documentation has it. See `serve`."""
    torch.set_grad_enabled(False)
    torch.set_num_threads(request["threads"])
    device = "cpu" if request["device"] == "cpu" or not torch.cuda.is_available() else "cuda"
    dtype = getattr(torch, request["dtype"])
    kind: Any = DiffusionPipeline
    without = dict.fromkeys(_WITHOUT[1:] if request["family"].startswith("sdxl") else _WITHOUT)
    pipeline = kind.from_pretrained(request["source"], torch_dtype=dtype, local_files_only=True, **without)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.register_to_config(force_upcast=False)  # SDXL's: the same precision for all, not its float32
    pipeline.to(device)
    if device == "cuda":
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
    if request.get("compile"):
        mode = "reduce-overhead" if device == "cuda" else "default"
        # Anew for each size, which is the fastest; so more often than is thought to be a mistake.
        torch._dynamo.config.recompile_limit = _SIZES
        compiled = partial(torch.compile, mode=mode, fullgraph=True, dynamic=False)
        pipeline.unet = compiled(pipeline.unet)
        pipeline.vae.decode = compiled(pipeline.vae.decode)
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
    sample, states = (to_device(feeds[name]) for name in ("sample", "encoder_hidden_states"))
    timestep = torch.from_numpy(feeds["timestep"])[0].to(sample.device)
    names = ("text_embeds", "time_ids")
    added = {name: to_device(feeds[name]) for name in names if name in feeds} or None
    # As its pipelines call it: what is compiled for these arguments is then compiled for a picture, too.
    given = {"encoder_hidden_states": states, "timestep_cond": None, "cross_attention_kwargs": None}
    given |= {"added_cond_kwargs": added, "return_dict": False}

    def run() -> Mapping[str, Any]:
        # Latents go to the device and come back at each step of ours; diffusers' stay there, and so does its clock.
        return {"out_sample": _host(pipeline.unet(sample, timestep, **given)[0])}

    return run


def _vae_decoder(pipeline: Any, to_device: Any, feeds: dict[str, Any]) -> Call:
    latents = to_device(feeds["latent_sample"])
    return lambda: {"sample": _host(pipeline.vae.decode(latents, return_dict=False)[0])}


def _picture(pipeline: Any, _: object, *, prompt: str, seed: int, steps: int, batch: int = 1, **settings: Any) -> Call:
    settings |= {"num_inference_steps": steps, "num_images_per_prompt": batch}

    def draw() -> Mapping[str, Any]:
        generators = [torch.Generator().manual_seed(seed + k) for k in range(batch)]
        images = pipeline(
            prompt, generator=generators, latents=_noise(pipeline, generators, **settings), **settings
        ).images
        return {"images": np.stack([np.asarray(image) for image in images])}

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
