"""The checkpoints in the original layout that we know, by what only each has. What isn't here is read from shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...weights import StoredTensor, Weight
from ..base import Config
from . import text

_SCHEDULE: Config = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
_PNDM = _SCHEDULE | {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False}
_DDIM = _SCHEDULE | {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False}
_EULER = _SCHEDULE | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}


@dataclass(frozen=True)
class Tower:
    """A text encoder: the prefix of its keys, how they become transformers', and what its shapes don't tell."""

    prefix: str
    convert: Callable[[Mapping[str, StoredTensor]], dict[str, Weight]]
    hidden_act: str
    pad_token: str


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of checkpoint.

    `towers` are its text encoders by folder: the keys of all of them are there, and of no other kind. `pipelines` are
    diffusers' classes by the number of channels that the UNet reads. `head_dim` and `scaling_factor` are those of
    `unet.config` and `vae.config`, and so are the `sample_sizes`, by what the UNet predicts. `guess_prediction`: the
    file may not say whether that is noise or v.
    """

    towers: Mapping[str, Tower]
    pipelines: Mapping[int, str]
    head_dim: int | None
    sample_sizes: Mapping[str, int]
    scaling_factor: float
    scheduler: Config
    index: Mapping[str, Any]
    guess_prediction: bool = False


def _clip(prefix: str) -> Tower:
    return Tower(prefix, text.convert_clip, "quick_gelu", "<|endoftext|>")


def _open_clip(prefix: str) -> Tower:
    return Tower(prefix, text.convert_open_clip, "gelu", "!")


_OPTIONAL = {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
_SD = {
    4: "StableDiffusionPipeline",
    8: "StableDiffusionInstructPix2PixPipeline",
    9: "StableDiffusionInpaintPipeline",
}

KINDS = {
    "Stable Diffusion 1.x": Kind(
        towers={"text_encoder": _clip("cond_stage_model.transformer.")},
        pipelines=_SD,
        head_dim=None,
        sample_sizes={"epsilon": 64, "v_prediction": 64},
        scaling_factor=0.18215,
        scheduler=_PNDM,
        index=_OPTIONAL,
    ),
    "Stable Diffusion 2.x": Kind(
        towers={"text_encoder": Tower("cond_stage_model.model.", text.convert_penultimate, "gelu", "!")},
        pipelines=_SD,
        head_dim=64,
        sample_sizes={"epsilon": 64, "v_prediction": 96},
        scaling_factor=0.18215,
        scheduler=_DDIM,
        index=_OPTIONAL,
        guess_prediction=True,
    ),
    "Stable Diffusion XL": Kind(
        towers={
            "text_encoder": _clip("conditioner.embedders.0.transformer."),
            "text_encoder_2": _open_clip("conditioner.embedders.1.model."),
        },
        pipelines={4: "StableDiffusionXLPipeline", 9: "StableDiffusionXLInpaintPipeline"},
        head_dim=64,
        sample_sizes={"epsilon": 128, "v_prediction": 128},
        scaling_factor=0.13025,
        scheduler=_EULER,
        index=_OPTIONAL | {"force_zeros_for_empty_prompt": True},
    ),
    "Stable Diffusion XL refiner": Kind(
        towers={"text_encoder_2": _open_clip("conditioner.embedders.0.model.")},
        pipelines={4: "StableDiffusionXLImg2ImgPipeline"},
        head_dim=64,
        sample_sizes={"epsilon": 128, "v_prediction": 128},
        scaling_factor=0.13025,
        scheduler=_EULER,
        index=_OPTIONAL
        | {
            "text_encoder": [None, None],
            "tokenizer": [None, None],
            "force_zeros_for_empty_prompt": False,
            "requires_aesthetics_score": True,
        },
    ),
}
