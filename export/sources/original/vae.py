"""The autoencoder of the original code (arXiv:2112.10752): its keys, and what its shapes say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ...weights import StoredTensor
from ..base import Config
from .unet import count

RENAMES = (
    (r"^encoder\.down\.(\d+)\.block\.", r"encoder.down_blocks.\1.resnets."),
    (r"^encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.up\.(\d+)\.block\.", r"decoder.up_blocks.\1.resnets."),
    (r"^decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out."),
)
_UP = re.compile(r"(?<=^decoder\.up_blocks\.)\d+")


def convert(weights: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """`weights` under diffusers' names; a key that is not of the original code keeps its own.

    The original counts the blocks of the decoder from the picture, diffusers from the latents. Its attention projects
    with 1x1 convolutions, diffusers' with matrices: the same numbers.
    """
    last = count(weights, "decoder.up.") - 1
    result = {}
    for key, weight in weights.items():
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        key = _UP.sub(lambda number: str(last - int(number[0])), key)
        if ".attentions." in key and weight.shape[2:] == (1, 1):
            weight = replace(weight, shape=weight.shape[:2])
        result[key] = weight
    return result


def config(weights: Mapping[str, StoredTensor], scaling_factor: float) -> Config:
    """The config of an AutoencoderKL with these weights, under diffusers' names. The shapes don't tell the factor."""
    blocks = range(count(weights, "encoder.down_blocks."))
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [weights[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in blocks],
        "layers_per_block": count(weights, "encoder.down_blocks.0.resnets."),
        "down_block_types": ["DownEncoderBlock2D" for _ in blocks],
        "up_block_types": ["UpDecoderBlock2D" for _ in blocks],
        "latent_channels": weights["post_quant_conv.weight"].shape[0],
        "scaling_factor": scaling_factor,
    }
