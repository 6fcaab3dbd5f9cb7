"""What made a picture, as the settings of a run that makes it again."""

from __future__ import annotations

import warnings
from collections.abc import Set
from pathlib import Path
from typing import Any

from edgediffusion.engines.errors import UsageError

from .manifest import Manifest
from .metadata import Parameters
from .settings import Settings

# What a picture can say and a run cannot be told without a file, or an array, that the picture does not hold.
_NEEDS = {
    "strength": ("image", "give it with --init-image"),
    "image_guidance_scale": ("image", "give it with --init-image"),
    "controlnet_conditioning_scale": ("control_images", "give them with --control-image"),
    "refiner": ("refiner", "give it with --refiner"),
    "denoising_start": ("latents", "draw it from Python, with the latents that another model left"),
}
_HIRES = "Hires"  # the web UI's words for a second pass begin so; then the strength is that pass's
# Of the web UI's settings those that decide nothing, or are used here.
_PASSED_OVER = {"RNG", "VAE hash", "Lora hashes", "TI hashes", "Hashes"}
_GENERATORS = {"CPU": "torch-cpu"}  # else, whatever its name, the web UI draws as a GPU does


class NotRepeated(UserWarning):
    """A picture that is to be drawn again was made with something else."""


def repeat(path: Path, parameters: Parameters, given: Set[str]) -> dict[str, Any]:
    """The settings, prompts among them, that made the picture in the file `path`; `given` names those told beside it.

    Raises:
        UsageError: the picture does not say enough, and nor does `given`.

    Warns:
        NotRepeated: a web UI's picture names settings that there are none for here.
    """
    known = {"prompt", "negative_prompt", *Settings.__annotations__}
    settings = {name: value for name, value in vars(parameters).items() if name in known and value is not None}
    if any(key.startswith(_HIRES) for key in parameters.other):
        settings.pop("strength", None)
    if settings.get("sigmas", "")[:1].isdigit():
        settings["sigmas"] = tuple(map(float, settings["sigmas"].split(",")))
    if parameters.noise is None:
        settings["noise"] = _GENERATORS.get(parameters.other.get("RNG", ""), "torch-cuda")
    for name, (needed, remedy) in _NEEDS.items():
        if name in settings and needed not in given:
            raise UsageError(
                f"{path}: drawn with {name} {settings[name]} from {needed} that it does not hold; {remedy}"
            )
    if "seed" not in settings.keys() | given:
        raise UsageError(f"{path}: it does not say its seed; give one with --seed")
    left = [f"{key} {value}" for key, value in parameters.other.items() if key not in _PASSED_OVER]
    if left:
        warnings.warn(f"{path}: not repeated, for want of such a setting: {', '.join(left)}", NotRepeated, stacklevel=2)
    return settings


def warn_of_another_model(path: Path, parameters: Parameters, manifest: Manifest) -> None:
    """Say so where the model is not the one that drew the picture, as far as it says.

    Warns:
        NotRepeated: it names another.
    """
    drew = parameters.model, parameters.model_hash
    here = manifest.source, manifest.model_hash
    if any(a is not None and b is not None and a != b for a, b in zip(drew, here, strict=True)):
        warnings.warn(f"{path}: drawn by {_name(*drew)}, and this is {_name(*here)}", NotRepeated, stacklevel=2)


def _name(model: str | None, model_hash: str | None) -> str:
    return f"{model!r}" if model_hash is None else f"{model!r} ({model_hash})"
