"""Whole pictures of every family against its diffusers pipeline: same weights, prompts and noise of the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgediffusion.export.reference import load_pipeline
from edgediffusion.export.to_onnx import quiet
from edgediffusion.runtime import Pipeline

from .test_pictures import MIN_PSNR, assert_same, psnr

SEED = 3
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
PICTURE = Image.fromarray(PIXELS).resize((64, 64), Image.Resampling.BICUBIC)
MASK = Image.fromarray((np.indices((64, 64)).sum(axis=0) < 70).astype(np.uint8) * 255)
THEIR_NAMES = {"mask": "mask_image"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a model is told, `settings` by our names. diffusers draws with `pipeline`, or the checkpoint's class."""

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    negative_prompt: str | None = "blurry, dark"
    pipeline: Any = None


CASES = {
    "sd": Case(model="sd"),
    "sdxl": Case(model="sdxl"),
    "sdxl, no negative prompt": Case(model="sdxl", negative_prompt=None),
    "sdxl, no guidance": Case(model="sdxl", settings={"guidance_scale": 1.0}),
    "sdxl, second prompts": Case(model="sdxl", settings={"prompt_2": "a car", "negative_prompt_2": "a rocket"}),
    "sdxl, oblong": Case(model="sdxl", settings={"height": 40, "width": 104}),
    "sdxl, from a picture": Case(
        model="sdxl",
        settings={"image": PICTURE, "strength": 0.6},
        pipeline=diffusers.StableDiffusionXLImg2ImgPipeline,
    ),
    "refiner": Case(model="sdxl_refiner", settings={"image": PICTURE, "strength": 0.6}),
    "refiner, no negative prompt": Case(
        model="sdxl_refiner", settings={"image": PICTURE, "strength": 0.6}, negative_prompt=None
    ),
}


def draw_both(
    case: Case, checkpoints: Callable[[str], Path], bundles: Callable[[str], Path], *, prompt: str = "a red apple"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(height, width, 3) by ours, of `prompt`, and by diffusers, always of a red apple."""
    settings: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 5.0} | case.settings
    with Pipeline.load(bundles(case.model)) as pipeline:
        (ours,) = pipeline(prompt, case.negative_prompt or "", seed=SEED, noise="torch-cpu", **settings)
    theirs = load_pipeline(checkpoints(case.model))
    if case.pipeline is not None:
        theirs = case.pipeline(**theirs.components)
    theirs.set_progress_bar_config(disable=True)
    theirs_settings = {THEIR_NAMES.get(name, name): value for name, value in settings.items()}
    with quiet():
        (reference,) = theirs(
            "a red apple",
            negative_prompt=case.negative_prompt,
            generator=torch.Generator("cpu").manual_seed(SEED),
            **theirs_settings,
        ).images
    return np.asarray(ours.image), np.asarray(reference)


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_picture_is_that_of_diffusers(case: Case, checkpoints: Any, bundles: Any) -> None:
    assert_same(*draw_both(case, checkpoints, bundles))


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.parametrize("name", ["sdxl", "refiner"])
def test_the_comparison_can_fail(name: str, checkpoints: Any, bundles: Any) -> None:
    assert psnr(*draw_both(CASES[name], checkpoints, bundles, prompt="a red apply")) < MIN_PSNR
