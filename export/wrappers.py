"""Networks with flat signatures: tensors in, tensors out, in the order of their `GraphSpec`.

The names of their parameters are the keys of the weights file, so nothing is ever renamed between torch and the graph.
"""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from .sources import Config


class TextEncoder(nn.Module):
    """CLIP's text tower, under the prefix `text_model.` that transformers 5 has dropped."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = CLIPTextModel(CLIPTextConfig.from_dict(config))
        self.text_model: nn.Module = getattr(model, "text_model", model)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 77) token ids -> (batch, 77, d) last_hidden_state, (batch, d) pooler_output."""
        output = self.text_model(input_ids=input_ids)
        return output.last_hidden_state, output.pooler_output


class ImageEncoder(nn.Module):
    """CLIP's vision tower and its projection into the space that it shares with the text."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        model = CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(config))
        self.vision_model = model.vision_model
        self.visual_projection = model.visual_projection

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(batch, 3, size, size) normalised pictures -> (batch, d) image_embeds."""
        projected: Tensor = self.visual_projection(self.vision_model(pixel_values=pixel_values).pooler_output)
        return projected


class UNet(UNet2DConditionModel):
    """The denoiser. A subclass, so that its parameters keep their names."""

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """(batch, 4, height, width), (1,), (batch, 77, d) -> out_sample (batch, 4, height, width)."""
        out_sample: Tensor = super().forward(  # type: ignore[misc]
            sample, timestep, encoder_hidden_states, return_dict=False
        )[0]
        return out_sample


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


def unet(config: Config) -> nn.Module:
    """The denoiser that `config` describes."""
    return from_config(UNet, config)


def from_config(kind: Any, config: Config) -> nn.Module:
    """The network of the diffusers class `kind` that `config` describes."""
    module: nn.Module = kind.from_config(config)
    return module
