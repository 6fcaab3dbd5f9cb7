"""The text towers of the original checkpoints: CLIP's under transformers' names, OpenCLIP's under its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from ...weights import Derived, StoredTensor, Weight
from ..base import Config
from .unet import count

RENAMES = (
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.ln_(\d)\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
)
LAYERS, PROJECTION = "text_model.encoder.layers.", "text_projection"
HEAD_DIM = 64  # of every CLIP that Stable Diffusion reads


@dataclass(frozen=True)
class Transposed(Derived):
    """A matrix that is stored the other way round."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The other way round."""
        return self.weight.shape[::-1]

    def read(self) -> torch.Tensor:
        """The transposed values, contiguous."""
        return self.weight.read().T.contiguous()


def convert_clip(weights: Mapping[str, StoredTensor]) -> dict[str, Weight]:
    """The keys are transformers' already."""
    return dict(weights)


def convert_open_clip(weights: Mapping[str, StoredTensor]) -> dict[str, Weight]:
    """`weights` under transformers' names. OpenCLIP keeps query, key and value in one matrix, one after the other."""
    result: dict[str, Weight] = {}
    for key, weight in weights.items():
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        if fused := re.fullmatch(r"(.*self_attn\.)in_proj_(weight|bias)", key):
            third = replace(weight, shape=(weight.shape[0] // 3, *weight.shape[1:]), length=weight.length // 3)
            for i, name in enumerate("qkv"):
                result[f"{fused[1]}{name}_proj.{fused[2]}"] = replace(third, offset=third.offset + i * third.length)
        elif key == PROJECTION:
            result[f"{PROJECTION}.weight"] = Transposed(weight)
        else:
            result[key] = weight
    return result


def convert_penultimate(weights: Mapping[str, StoredTensor]) -> dict[str, Weight]:
    """OpenCLIP's tower as SD 2.x reads it: up to the last but one layer, then the final norm."""
    converted = convert_open_clip(weights)
    unread = (f"{LAYERS}{count(converted, LAYERS) - 1}.", f"{PROJECTION}.")
    return {key: weight for key, weight in converted.items() if not key.startswith(unread)}


def config(weights: Mapping[str, Weight], hidden_act: str) -> Config:
    """The config of a CLIPTextModel, or CLIPTextModelWithProjection, with these weights, under transformers' names."""
    vocab_size, width = weights["text_model.embeddings.token_embedding.weight"].shape
    projection = weights.get(f"{PROJECTION}.weight")
    return {
        "architectures": ["CLIPTextModel" if projection is None else "CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": weights[f"{LAYERS}0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": count(weights, LAYERS),
        "num_attention_heads": width // HEAD_DIM,
        "max_position_embeddings": weights["text_model.embeddings.position_embedding.weight"].shape[0],
        "projection_dim": width if projection is None else projection.shape[0],
        "hidden_act": hidden_act,
        "layer_norm_eps": 1e-5,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": 1,
    }
