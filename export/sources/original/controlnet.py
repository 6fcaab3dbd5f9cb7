"""ControlNet's original code (arXiv:2302.05543): its keys, and what its shapes say. The rest is that of its UNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...weights import Weight
from ..base import Config
from . import unet

HINT, EMBEDDING = "input_hint_block.", "controlnet_cond_embedding."
RENAMES = (
    (r"^zero_convs\.(\d+)\.0\.", r"controlnet_down_blocks.\1."),
    (r"^middle_block_out\.0\.", "controlnet_mid_block."),
)


def convert(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """`weights` under diffusers' names, which some files have already."""
    places = sorted({int(key.split(".")[1]) for key in weights if key.startswith(HINT)})
    names = ["conv_in", *(f"blocks.{i}" for i in range(len(places) - 2)), "conv_out"]
    hint = {f"{HINT}{place}.": f"{EMBEDDING}{name}." for place, name in zip(places, names, strict=False)}
    result = {}
    for key, weight in unet.convert(weights).items():
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        start = key[: key.rfind(".") + 1]
        result[hint.get(start, start) + key[len(start) :]] = weight
    return result


def config(weights: Mapping[str, Weight], attention_head_dim: Any) -> Config:
    """The config of a ControlNetModel with these weights, under diffusers' names; its heads are those of its UNet."""
    first = weights[f"{EMBEDDING}conv_in.weight"].shape
    halving = range(1, unet.count(weights, f"{EMBEDDING}blocks."), 2)
    return {
        "_class_name": "ControlNetModel",
        "conditioning_channels": first[1],
        "conditioning_embedding_out_channels": [
            first[0],
            *(weights[f"{EMBEDDING}blocks.{i}.weight"].shape[0] for i in halving),
        ],
        "attention_head_dim": attention_head_dim,
        **unet.blocks(weights),
    }
