"""The UNet of the original code (arXiv:2112.10752 and 2307.01952): its keys, and what its shapes say.

There a flat list of blocks goes down, `input_blocks`, and one up, `output_blocks`, each entry a resnet with perhaps a
transformer and a resampler; diffusers groups them by resolution.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping

from ...weights import Weight
from ..base import Config

OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "time_embed.cond_proj": "time_embedding.cond_proj",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def convert(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """`weights` under diffusers' names; a key that is not of the original code keeps its own."""
    modules = OUTSIDE | _down(weights) | _up(weights)
    return {_rename(key, modules, RESNET): weight for key, weight in weights.items()}


def original_keys(weights: Collection[str]) -> dict[str, str]:
    """diffusers' keys of a UNet -> those of the original code, by which some LoRAs name them."""
    modules = {new: old for old, new in OUTSIDE.items()}
    for side, entries, entry in (("down", "input_blocks", 1), ("up", "output_blocks", 0)):
        for block in range(count(weights, f"{side}_blocks.")):
            place = f"{side}_blocks.{block}"
            for layer in range(count(weights, f"{place}.resnets.")):
                modules[f"{place}.resnets.{layer}"] = f"{entries}.{entry}.0"
                modules[f"{place}.attentions.{layer}"] = f"{entries}.{entry}.1"
                entry += 1
            if f"{place}.downsamplers.0.conv.weight" in weights:
                modules[f"{place}.downsamplers.0.conv"] = f"{entries}.{entry}.0.op"
                entry += 1
            attends = any(key.startswith(f"{place}.attentions.") for key in weights)
            modules[f"{place}.upsamplers.0.conv"] = f"{entries}.{entry - 1}.{1 + attends}.conv"
    inner = {new: old for old, new in RESNET.items()}
    return {key: _rename(key, modules, inner) for key in weights}


def config(weights: Mapping[str, Weight], head_dim: int | None, sample_size: int) -> Config:
    """The config of a UNet2DConditionModel with these weights, under diffusers' names.

    The shapes don't tell `head_dim`, the width of an attention head, None for 8 heads whatever their width, and
    `sample_size`, the height and width of latents that it was trained on.
    """
    described = blocks(weights)
    widths, kinds = described["block_out_channels"], described["down_block_types"]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": sample_size,
        "out_channels": weights["conv_out.weight"].shape[0],
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(kinds)],
        "attention_head_dim": 8 if head_dim is None else [width // head_dim for width in widths],
        **described,
    }


def blocks(weights: Mapping[str, Weight]) -> Config:
    """What a UNet and its ControlNet have in common: how it goes down."""
    levels = range(count(weights, "down_blocks."))
    depths = [_depth(weights, f"down_blocks.{i}.attentions.0") for i in levels]
    present = {depth for depth in (*depths, _depth(weights, "mid_block.attentions.0")) if depth}
    context = next(w.shape[1] for key, w in weights.items() if key.endswith("attn2.to_k.weight"))
    projections = (w for key, w in weights.items() if key.endswith("attentions.0.proj_in.weight"))
    return {
        "in_channels": weights["conv_in.weight"].shape[1],
        "layers_per_block": count(weights, "down_blocks.0.resnets."),
        "block_out_channels": [weights[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in levels],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "transformer_layers_per_block": present.pop() if len(present) == 1 else [depth or 1 for depth in depths],
        "cross_attention_dim": context,
        "use_linear_projection": len(next(projections).shape) == 2,
        **_conditions(weights),
    }


def _conditions(weights: Mapping[str, Weight]) -> Config:
    """What the UNet is told beside the prompt: size and crop (SDXL), the guidance scale (LCM)."""
    result: Config = {}
    if (added := weights.get("add_embedding.linear_1.weight")) is not None:
        result |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": added.shape[1],
        }
    if (guidance := weights.get("time_embedding.cond_proj.weight")) is not None:
        result["time_cond_proj_dim"] = guidance.shape[1]
    return result


def count(keys: Iterable[str], start: str) -> int:
    """How many numbers, from 0 on, follow `start` in `keys`."""
    found = {key[len(start) :].partition(".")[0] for key in keys if key.startswith(start)}
    return next(i for i in itertools.count() if str(i) not in found)


def _depth(keys: Iterable[str], attention: str) -> int:
    return count(keys, attention + ".transformer_blocks.")


def _down(keys: Collection[str]) -> dict[str, str]:
    modules, block, layer = {}, 0, 0
    for i in range(1, count(keys, "input_blocks.")):
        if f"input_blocks.{i}.0.op.weight" in keys:
            modules[f"input_blocks.{i}.0.op"] = f"down_blocks.{block}.downsamplers.0.conv"
            block, layer = block + 1, 0
        else:
            modules[f"input_blocks.{i}.0"] = f"down_blocks.{block}.resnets.{layer}"
            modules[f"input_blocks.{i}.1"] = f"down_blocks.{block}.attentions.{layer}"
            layer += 1
    return modules


def _up(keys: Collection[str]) -> dict[str, str]:
    modules, block, layer = {}, 0, 0
    for i in range(count(keys, "output_blocks.")):
        modules[f"output_blocks.{i}.0"] = f"up_blocks.{block}.resnets.{layer}"
        modules[f"output_blocks.{i}.1"] = f"up_blocks.{block}.attentions.{layer}"
        layer += 1
        upsampler = next((j for j in (1, 2) if f"output_blocks.{i}.{j}.conv.weight" in keys), None)
        if upsampler is not None:
            modules[f"output_blocks.{i}.{upsampler}.conv"] = f"up_blocks.{block}.upsamplers.0.conv"
            block, layer = block + 1, 0
    return modules


def _rename(key: str, modules: Mapping[str, str], inside: Mapping[str, str]) -> str:
    words = key.split(".")
    for n in range(len(words) - 1, 0, -1):
        if module := modules.get(".".join(words[:n])):
            inner = ".".join(words[n:-1])
            return ".".join(word for word in (module, inside.get(inner, inner), words[-1]) if word)
    return key
