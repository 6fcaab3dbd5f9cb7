"""diffusers' own pipeline over the same weights: what pictures are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from torch import nn

from .sources import Source, open_source
from .to_onnx import quiet
from .weights import load
from .wrappers import from_config

VAE_HALVES = ("vae_decoder", "vae_encoder")


def load_pipeline(source: Path) -> Any:
    """The pipeline that the checkpoint or bundle `source` names, in float32, without a safety checker.

    `save_pretrained` of the result turns a bundle into a folder that diffusers opens by itself. A bundle is not one: it
    keeps the halves of the VAE apart, each beside its graph, and diffusers takes the weights in `vae/` only.

    Raises:
        ExportError, UnknownName: see `sources.open_source`.
    """
    checkpoint = open_source(source)
    parts: dict[str, Any] = {"safety_checker": None} if "safety_checker" in checkpoint.index else {}
    if not checkpoint.component(["vae"]):
        parts["vae"] = _join_vae(checkpoint)
    with quiet():
        pipeline: Any = DiffusionPipeline
        return pipeline.from_pretrained(source, torch_dtype=torch.float32, **parts)


def _join_vae(bundle: Source) -> nn.Module:
    vae = from_config(AutoencoderKL, bundle.parts[VAE_HALVES[0]].config)
    tensors = {key: weight for half in VAE_HALVES for key, weight in bundle.parts[half].weights.items()}
    vae.load_state_dict({key: load(key, tensor) for key, tensor in tensors.items()})
    return vae.eval()
