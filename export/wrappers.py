"""Networks with flat signatures: the inputs of their `GraphSpec` by name, its outputs in order.

The names of their parameters are the keys of the weights file, so nothing is ever renamed between torch and the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings

from .sources import Config

SPECIAL_CONCEPTS, CONCEPTS = 3, 17  # of every safety checker: diffusers' class has no others


class TextEncoder(nn.Module):
    """CLIP's text tower, under the prefix `text_model.` that transformers 5 has dropped."""

    def __init__(self, config: Config, *, hidden_states: bool) -> None:
        super().__init__()
        model = CLIPTextModel(CLIPTextConfig.from_dict(config))
        self.text_model: Any = getattr(model, "text_model", model)
        self.hidden_states = hidden_states

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """(batch, 77) token ids -> (batch, 77, d) last_hidden_state, (batch, d) pooler_output, hidden_states."""
        output = self.text_model(input_ids=input_ids, output_hidden_states=self.hidden_states)
        pooled = pool(output.last_hidden_state, input_ids, self.text_model.config.eos_token_id)
        return output.last_hidden_state, pooled, *(output.hidden_states or ())


class ProjectedTextEncoder(nn.Module):
    """CLIP's text tower and its projection into the space that it shares with pictures."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = CLIPTextModelWithProjection(CLIPTextConfig.from_dict(config))
        self.text_model = model.text_model
        self.text_projection = model.text_projection

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """(batch, 77) token ids -> (batch, p) text_embeds, (batch, 77, d) last_hidden_state, hidden_states."""
        output = self.text_model(input_ids=input_ids, output_hidden_states=True)
        pooled = pool(output.last_hidden_state, input_ids, self.text_model.config.eos_token_id)
        return self.text_projection(pooled), output.last_hidden_state, *output.hidden_states


def pool(last_hidden_state: Tensor, input_ids: Tensor, eos_token_id: int) -> Tensor:
    """CLIP's pooler_output, (batch, d): the vector of the first end-of-text token.

    A product with one 1 and zeros, where transformers picks by index, for which ONNX needs to know the batch. As there,
    an `eos_token_id` of 2 stands for the largest id: the configs of the first checkpoints have it wrong.
    """
    eos = input_ids.amax(-1, keepdim=True) if eos_token_id == 2 else eos_token_id
    first = (input_ids == eos).to(last_hidden_state.dtype).argmax(-1, keepdim=True)
    chosen = torch.arange(input_ids.shape[-1]) == first
    return (chosen[:, None].to(last_hidden_state.dtype) @ last_hidden_state).squeeze(1)


class ImageEmbeddings(CLIPVisionEmbeddings):
    """A vector for each patch of a picture, behind one for the whole. A subclass: its parameters keep their names.

    That one is added to zeros, where transformers repeats it, for which ONNX needs to know the batch.
    """

    def forward(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """(batch, 3, size, size) -> (batch, 1 + patches, d)."""
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        whole = functional.pad(self.class_embedding[None], (0, 0, 0, patches.shape[1]))
        return functional.pad(patches, (0, 0, 1, 0)) + (whole + self.position_embedding.weight)


class ImageEncoder(nn.Module):
    """CLIP's vision tower and its projection into the space that it shares with the text."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(config))
        self.vision_model = model.vision_model
        self.vision_model.embeddings = ImageEmbeddings(model.config)
        self.visual_projection = model.visual_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, 3, size, size) normalised pictures -> (batch, d) image_embeds."""
        projected: Tensor = self.visual_projection(self.vision_model(pixel_values=pixel_values).pooler_output)
        return projected


class SafetyChecker(nn.Module):
    """diffusers' StableDiffusionSafetyChecker up to its decision, its tower named as in transformers 4."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        clip = safety_checker_config(config)
        model = CLIPVisionModel(clip.vision_config)
        tower: Any = getattr(model, "vision_model", model)
        tower.embeddings = ImageEmbeddings(clip.vision_config)
        self.vision_model = nn.ModuleDict({"vision_model": tower})
        self.visual_projection = nn.Linear(clip.vision_config.hidden_size, clip.projection_dim, bias=False)
        self.special_care_embeds = nn.Parameter(torch.empty(SPECIAL_CONCEPTS, clip.projection_dim))
        self.concept_embeds = nn.Parameter(torch.empty(CONCEPTS, clip.projection_dim))
        self.special_care_embeds_weights = nn.Parameter(torch.empty(SPECIAL_CONCEPTS))
        self.concept_embeds_weights = nn.Parameter(torch.empty(CONCEPTS))

    def forward(self, clip_input: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, size, size) normalised pictures -> (batch, 3) special_scores, (batch, 17) concept_scores.

        A score is the cosine of picture and concept, less the concept's threshold.
        """
        image_embeds = self.visual_projection(self.vision_model["vision_model"](pixel_values=clip_input).pooler_output)
        special = _cosines(image_embeds, self.special_care_embeds) - self.special_care_embeds_weights
        return special, _cosines(image_embeds, self.concept_embeds) - self.concept_embeds_weights


def safety_checker_config(config: Config) -> Any:
    """The CLIPConfig of what a safety checker's config.json says, with CLIP's own defaults for the rest."""
    return CLIPConfig.from_dict(config)


def _cosines(rows: Tensor, others: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n, m)"""
    cosines: Tensor = rows @ others.T / (rows.norm(dim=-1, keepdim=True) * others.norm(dim=-1))
    return cosines


class UNet(UNet2DConditionModel):
    """The denoiser. A subclass, so that its parameters keep their names."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
        **residuals: Tensor,
    ) -> Tensor:
        """(batch, c, height, width), (1,), (batch, sequence_length, d) and what else `unet_spec` names -> out_sample.

        `residuals` are what ControlNets say: `down_block_additional_residual_0` and so on, and that of the middle.
        """
        down = [residuals[f"down_block_additional_residual_{i}"] for i in range(len(residuals) - 1)]
        out_sample: Tensor = super().forward(  # type: ignore[misc]
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids},
            down_block_additional_residuals=down or None,
            mid_block_additional_residual=residuals.get("mid_block_additional_residual"),
            return_dict=False,
        )[0]
        return out_sample

    def get_time_embed(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """The sinusoidal embedding of the one timestep of a batch, (1, d): it broadcasts, diffusers repeats it."""
        embedding: Tensor = self.time_proj(timestep)  # type: ignore[attr-defined]
        return embedding


class ControlNet(ControlNetModel):
    """What a picture says to the blocks of a UNet. A subclass, so that its parameters keep their names."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        conditioning_scale: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """What `controlnet_spec` names -> a residual for each block, and for the middle."""
        down, middle = super().forward(  # type: ignore[misc]
            sample,
            timestep,
            encoder_hidden_states,
            controlnet_cond,
            conditioning_scale,
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids},
            return_dict=False,
        )
        return *down, middle


class VaeDecoder(nn.Module):
    """Latents to picture."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        vae: Any = from_config(AutoencoderKL, config)
        self.post_quant_conv = vae.post_quant_conv
        self.decoder = vae.decoder

    def forward(self, latent_sample: Tensor) -> Tensor:
        """(batch, 4, height, width), unscaled -> (batch, 3, 8 height, 8 width) in about [-1, 1]."""
        sample: Tensor = self.decoder(self.post_quant_conv(latent_sample))
        return sample


class VaeEncoder(nn.Module):
    """Picture to the mean and the logarithm of the variance of its latents."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        vae: Any = from_config(AutoencoderKL, config)
        self.encoder = vae.encoder
        self.quant_conv = vae.quant_conv

    def forward(self, sample: Tensor) -> Tensor:
        """(batch, 3, height, width) in [-1, 1] -> (batch, 8, height / 8, width / 8)."""
        latent_parameters: Tensor = self.quant_conv(self.encoder(sample))
        return latent_parameters


class TinyVaeDecoder(nn.Module):
    """Latents to picture, by the small decoder of https://github.com/madebyollin/taesd."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        vae: Any = from_config(AutoencoderTiny, config)
        self.decoder = vae.decoder

    def forward(self, latent_sample: Tensor) -> Tensor:
        """(batch, 4, height, width) as the UNet has them -> (batch, 3, 8 height, 8 width) in about [-1, 1]."""
        sample: Tensor = self.decoder(latent_sample)
        return sample


class TinyVaeEncoder(nn.Module):
    """Picture to latents, by the small encoder of https://github.com/madebyollin/taesd."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        vae: Any = from_config(AutoencoderTiny, config)
        self.encoder = vae.encoder

    def forward(self, sample: Tensor) -> Tensor:
        """(batch, 3, height, width) in [-1, 1] -> (batch, 4, height / 8, width / 8) as the UNet has them."""
        latent_sample: Tensor = self.encoder(sample)
        return latent_sample


VAES: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "AutoencoderKL": (VaeEncoder, VaeDecoder),
    "AutoencoderTiny": (TinyVaeEncoder, TinyVaeDecoder),
}


def vae_encoder(config: Config) -> nn.Module:
    """The encoder of the autoencoder that `config` describes; KeyError where its class is none of `VAES`."""
    return VAES[config["_class_name"]][0](config)


def vae_decoder(config: Config) -> nn.Module:
    """The decoder of the autoencoder that `config` describes; KeyError where its class is none of `VAES`."""
    return VAES[config["_class_name"]][1](config)


def unet(config: Config) -> nn.Module:
    """The denoiser that `config` describes."""
    return from_config(UNet, config)


def controlnet(config: Config) -> nn.Module:
    """The ControlNet that `config` describes."""
    return from_config(ControlNet, config)


def from_config(kind: Any, config: Config) -> nn.Module:
    """The network of the diffusers class `kind` that `config` describes."""
    module: nn.Module = kind.from_config(config)
    return module
