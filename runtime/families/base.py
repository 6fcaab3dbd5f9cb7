"""What a model family is, as far as running it is concerned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Component:
    """One network of a bundle: a folder with `config.json`, its weights and `model.onnx`.

    `tokenizer` is the folder of the tokenizer that makes a text encoder's `input_ids`.
    """

    folder: str
    weights: str = "diffusion_pytorch_model.safetensors"
    optional: bool = False
    tokenizer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What a run of the family does unless told; the names are those of `settings.Settings`."""

    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    strength: float = 0.8
    image_guidance_scale: float = 1.5


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family.

    `pipelines` names what can be done with it, see `runtime/pipelines/`. `pipeline_classes` are the `_class_name`s of
    `model_index.json` that belong to it. `scheduler_config` holds what its diffusers pipeline sets in every scheduler
    config it is given.
    `text_layer` is which of each text encoder's hidden states the UNet reads, -2 the last but one, None the last, with
    its final norm. `force_zeros_for_empty_prompt` holds where `model_index.json` doesn't say: no negative prompt is
    zeros then, instead of an empty prompt.
    `branches` is how many rows of the UNet's batch belong to one picture under guidance, see `guidance.Guidance`.
    `few_steps` are the defaults of its models that were distilled, see `schedulers.is_for_few_steps`: SDXL-Turbo's card
    has 1 to 4 steps without guidance, Lightning's 1 to 8, that of LCM-LoRA 2 to 8 at 1 to 2, that of TCD 4 at 0.
    """

    pipeline_classes: tuple[str, ...]
    components: tuple[Component, ...]
    scheduler_config: Mapping[str, Any] = field(default_factory=dict)
    pipelines: tuple[str, ...] = ("text2image", "image2image", "masked_latents")
    text_layer: int | None = None
    force_zeros_for_empty_prompt: bool = False
    branches: int = 2
    defaults: Defaults = Defaults()
    few_steps: Defaults = Defaults(num_inference_steps=4, guidance_scale=1.0)

    @property
    def required(self) -> frozenset[str]:
        """The folders of the components that it cannot do without."""
        return frozenset(component.folder for component in self.components if not component.optional)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The folders of its tokenizers."""
        return tuple(component.tokenizer for component in self.components if component.tokenizer is not None)


CONTROLNET_FOLDERS = ("controlnet", "controlnet_2", "controlnet_3", "controlnet_4")
CONTROLNETS = tuple(Component(folder=folder, optional=True) for folder in CONTROLNET_FOLDERS)
UNET_AND_VAE = (Component(folder="unet"), Component(folder="vae_decoder"), Component(folder="vae_encoder"))
SAFETY_CHECKER = Component(folder="safety_checker", weights="model.safetensors", optional=True)
IMAGE_ENCODER = Component(folder="image_encoder", weights="model.safetensors", optional=True)
