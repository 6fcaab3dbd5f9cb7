"""Tiny checkpoints in the original layout, made from diffusers models by formulas that go the other way than ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

Tensors = dict[str, Tensor]
UNET: dict[str, Any] = {
    "layers_per_block": 2,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 64,
}
UNET_2 = UNET | {"block_out_channels": (64, 128), "attention_head_dim": (1, 2), "use_linear_projection": True}
UNET_XL = UNET_2 | {
    "block_out_channels": (64, 64, 64),
    "attention_head_dim": (1, 1, 1),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "cross_attention_dim": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 6 * 256 + 64,
}
UNET_REFINER = UNET_XL | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 2,
    "cross_attention_dim": 64,
    "projection_class_embeddings_input_dim": 5 * 256 + 64,
}
VAE: dict[str, Any] = {
    "layers_per_block": 1,
    "block_out_channels": (32, 32, 64, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
CLIP: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "projection_dim": 64,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}


@dataclass(frozen=True)
class Original:
    """What the file holds: the models by folder, each text encoder as (prefix, layout), extra tensors."""

    unet: dict[str, Any]
    towers: dict[str, tuple[str, str]]
    extra: Tensors = field(default_factory=dict)


SD1 = {"text_encoder": ("cond_stage_model.transformer.", "clip")}
SD2 = {"text_encoder": ("cond_stage_model.model.", "penultimate")}
XL = {
    "text_encoder": ("conditioner.embedders.0.transformer.", "clip"),
    "text_encoder_2": ("conditioner.embedders.1.model.", "open_clip"),
}
ORIGINALS = {
    "sd1": Original(UNET, SD1, {"model_ema.decay": torch.ones(()), "betas": torch.ones(3)}),
    "sd1_inpaint": Original(UNET | {"in_channels": 9}, SD1),
    "sd1_pix2pix": Original(UNET | {"in_channels": 8}, SD1),
    "sd2": Original(UNET_2, SD2),
    "sdxl": Original(UNET_XL, XL, {f"{XL['text_encoder'][0]}text_model.embeddings.position_ids": torch.arange(77)}),
    "sdxl_refiner": Original(UNET_REFINER, {"text_encoder_2": ("conditioner.embedders.0.model.", "open_clip")}),
}


def models(original: Original) -> dict[str, nn.Module]:
    """Random models, by their folder in diffusers' layout."""
    diffusion: Any = UNet2DConditionModel
    autoencoder: Any = AutoencoderKL
    factor = 0.18215 if "cond_stage" in next(iter(original.towers.values()))[0] else 0.13025
    unet, vae = diffusion(**original.unet), autoencoder(**VAE, scaling_factor=factor)
    result: dict[str, nn.Module] = {"unet": unet, "vae": vae}
    for folder, (_, layout) in original.towers.items():
        kind: Any = CLIPTextModelWithProjection if layout == "open_clip" else CLIPTextModel
        act = "quick_gelu" if layout == "clip" else "gelu"
        result[folder] = kind(CLIPTextConfig(**CLIP, hidden_act=act))
    return result


def state(model: nn.Module) -> Tensors:
    """The weights of `model` as checkpoints have them: text encoders with the prefix `text_model.`."""
    tensors = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    prefix = "text_model." if isinstance(model, CLIPTextModel) and not hasattr(model, "text_model") else ""
    return {prefix + key: tensor for key, tensor in tensors.items()}


def write(path: Path, original: Original, found: Mapping[str, nn.Module]) -> Path:
    """Save `found` at `path` in the original layout."""
    tensors = {f"model.diffusion_model.{key}": t for key, t in unet(state(found["unet"]), original.unet).items()}
    tensors |= {f"first_stage_model.{key}": t for key, t in vae(state(found["vae"])).items()}
    for folder, (prefix, layout) in original.towers.items():
        own = state(found[folder])
        tensors |= {prefix + key: t for key, t in (own if layout == "clip" else open_clip(own, layout)).items()}
    save_file({key: t.contiguous().clone() for key, t in (tensors | original.extra).items()}, path)
    return path


INNER = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """`input_blocks` count from 1, and each resolution takes its layers and one downsampler."""
    per = config["layers_per_block"] + 1

    def place(key: str) -> str:
        side, block, what, layer, rest = re.match(r"(\w+)_block[s.]*(\d?)\.?(\w+)\.(\d+)\.(.+)", key).groups()  # type: ignore[union-attr]
        if what == "resnets":
            module, _, name = rest.rpartition(".")
            rest = f"{INNER[module]}.{name}"
        if side == "mid":
            return f"middle_block.{1 if what == 'attentions' else 2 * int(layer)}.{rest}"
        if what == "downsamplers":
            return f"input_blocks.{(int(block) + 1) * per}.0.op.{rest.removeprefix('conv.')}"
        if what == "upsamplers":
            attends = config["up_block_types"][int(block)].startswith("Cross")
            return f"output_blocks.{int(block) * per + per - 1}.{1 + attends}.{rest}"
        list_, first = {"down": ("input_blocks", 1), "up": ("output_blocks", 0)}[side]
        return f"{list_}.{first + int(block) * per + int(layer)}.{int(what == 'attentions')}.{rest}"

    result = {}
    for key, tensor in tensors.items():
        module, _, name = key.rpartition(".")
        result[f"{OUTER[module]}.{name}" if module in OUTER else place(key)] = tensor
    return result


def controlnet(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    """The UNet's way down; the layers of the hint have an activation between each two, which counts."""
    last = 2 * (1 + max(int(key.split(".")[2]) for key in tensors if ".blocks." in key)) + 2

    def place(key: str) -> str | None:
        match key.split("."):
            case "controlnet_down_blocks", i, name:
                return f"zero_convs.{i}.0.{name}"
            case "controlnet_mid_block", name:
                return f"middle_block_out.0.{name}"
            case "controlnet_cond_embedding", "blocks", i, name:
                return f"input_hint_block.{2 * int(i) + 2}.{name}"
            case "controlnet_cond_embedding", end, name:
                return f"input_hint_block.{0 if end == 'conv_in' else last}.{name}"
        return None

    placed = {place(key): tensor for key, tensor in tensors.items()}
    shared = unet({key: tensor for key, tensor in tensors.items() if place(key) is None}, config)
    return shared | {key: tensor for key, tensor in placed.items() if key is not None}


def vae(tensors: Tensors) -> Tensors:
    """Blocks of the decoder count from the picture; attention projects with 1x1 convolutions."""
    result = {}
    for key, tensor in tensors.items():
        if ".attentions.0." in key and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        for new, old in (
            ("mid_block.resnets.0", "mid.block_1"),
            ("mid_block.resnets.1", "mid.block_2"),
            ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
            ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
            ("mid_block.attentions.0.to_", "mid.attn_1."),
            ("conv_norm_out", "norm_out"),
            ("conv_shortcut", "nin_shortcut"),
            ("downsamplers.0", "downsample"),
            ("upsamplers.0", "upsample"),
            ("down_blocks", "down"),
            (".resnets.", ".block."),
        ):
            key = key.replace(new, old)
        result[re.sub(r"up_blocks\.(\d)", lambda i: f"up.{3 - int(i[1])}", key)] = tensor
    return result


def open_clip(tensors: Tensors, layout: str) -> Tensors:
    """Query, key and value in one; `penultimate` has a last layer and a projection that nobody reads."""
    result: Tensors = {"logit_scale": torch.ones(())}
    tensors = dict(tensors)
    if layout == "penultimate":
        last = {key.replace(".1.", ".2."): tensor + 1 for key, tensor in tensors.items() if ".layers.1." in key}
        tensors |= last | {"text_projection.weight": torch.ones(64, 64)}
    result["text_projection"] = tensors.pop("text_projection.weight").T
    for key in [key for key in tensors if ".q_proj." in key]:
        fused = torch.cat([tensors.pop(key.replace("q_proj", f"{i}_proj")) for i in "qkv"])
        tensors[key.replace("q_proj.", "in_proj_")] = fused
    for key, tensor in tensors.items():
        for new, old in (
            ("text_model.encoder.layers", "transformer.resblocks"),
            ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
            ("text_model.embeddings.token_embedding", "token_embedding"),
            ("text_model.final_layer_norm", "ln_final"),
            ("layer_norm", "ln_"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("self_attn", "attn"),
        ):
            key = key.replace(new, old)
        result[key] = tensor
    return result
