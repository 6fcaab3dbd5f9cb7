"""Whole pictures of every family against its diffusers pipeline: same weights, prompts and noise of the same seed."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from edgediffusion.export.options import Options
from edgediffusion.export.reference import load_pipeline
from edgediffusion.export.to_onnx import quiet
from edgediffusion.export.write_bundle import export_bundle
from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.families import FAMILIES

from ..conftest import SLOW
from .test_pictures import MIN_PSNR, Picture, assert_same, psnr

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with NumPy 2
# Ten bits of fraction: errors of 1e-3 of the largest value, in every layer of every step, against float32.
MIN_PSNR_FLOAT16 = 35.0
SEEDS = (3, 4)
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
    "sd2": Case(model="sd2"),
    "sd2, no guidance": Case(model="sd2", settings={"guidance_scale": 1.0}),
    "AutoencoderTiny": Case(model="sd_taesd"),
    "AutoencoderTiny, from a picture": Case(
        model="sd_taesd",
        settings={"image": PICTURE, "strength": 0.6},
        pipeline=diffusers.StableDiffusionImg2ImgPipeline,
    ),
    "inpainting": Case(model="sd_inpaint", settings={"image": PICTURE, "mask": MASK}),
    "inpainting, less strength": Case(model="sd_inpaint", settings={"image": PICTURE, "mask": MASK, "strength": 0.6}),
    "inpainting, no guidance": Case(
        model="sd_inpaint", settings={"image": PICTURE, "mask": MASK, "guidance_scale": 1.0}
    ),
    "pix2pix": Case(model="sd_pix2pix", settings={"image": PICTURE, "image_guidance_scale": 1.2}),
    "pix2pix, no guidance": Case(model="sd_pix2pix", settings={"image": PICTURE, "image_guidance_scale": 0.5}),
    "lcm": Case(model="lcm", settings={"num_inference_steps": 4, "guidance_scale": 8.5}, negative_prompt=None),
    "lcm, from a picture": Case(
        model="lcm",
        settings={"image": PICTURE, "strength": 0.6, "num_inference_steps": 4, "guidance_scale": 8.5},
        negative_prompt=None,
        pipeline=diffusers.LatentConsistencyModelImg2ImgPipeline,
    ),
    "lcm, masked latents": Case(
        model="lcm",
        settings={"image": PICTURE, "mask": MASK, "strength": 0.6, "guidance_scale": 8.5},
        negative_prompt=None,
        pipeline=diffusers.StableDiffusionInpaintPipeline,
    ),
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
    "sdxl, masked latents": Case(
        model="sdxl",
        settings={"image": PICTURE, "mask": MASK, "strength": 0.6},
        pipeline=diffusers.StableDiffusionXLInpaintPipeline,
    ),
    "sdxl inpainting": Case(model="sdxl_inpaint", settings={"image": PICTURE, "mask": MASK}),
    "sdxl inpainting, strength 1": Case(
        model="sdxl_inpaint", settings={"image": PICTURE, "mask": MASK, "strength": 1.0}
    ),
    "sdxl inpainting, less strength": Case(
        model="sdxl_inpaint", settings={"image": PICTURE, "mask": MASK, "strength": 0.6}
    ),
    "sdxl inpainting, no guidance": Case(
        model="sdxl_inpaint", settings={"image": PICTURE, "mask": MASK, "guidance_scale": 1.0}
    ),
    "refiner": Case(model="sdxl_refiner", settings={"image": PICTURE, "strength": 0.6}),
    "refiner, no negative prompt": Case(
        model="sdxl_refiner", settings={"image": PICTURE, "strength": 0.6}, negative_prompt=None
    ),
}


def draw_both(
    case: Case, checkpoints: Callable[[str], Path], bundles: Callable[[str], Path], *, prompt: str = "a red apple"
) -> list[tuple[Picture, Picture]]:
    """Two pictures, (height, width, 3): by ours, of `prompt`, and by diffusers, always of a red apple.

    diffusers draws them one by one: of a batch it encodes a picture to start from once, with the first generator.
    """
    settings: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 5.0} | case.settings
    with Pipeline.load(bundles(case.model)) as pipeline:
        ours = pipeline(
            prompt, case.negative_prompt or "", seed=SEEDS[0], num_images=len(SEEDS), noise="torch-cpu", **settings
        )
    theirs = load_pipeline(checkpoints(case.model))
    if case.pipeline is not None:
        theirs = case.pipeline(**theirs.components)
    theirs.set_progress_bar_config(disable=True)
    told = {THEIR_NAMES.get(name, name): value for name, value in settings.items()}
    if case.negative_prompt is not None:
        told["negative_prompt"] = case.negative_prompt
    pairs = []
    for picture, seed in zip(ours, SEEDS, strict=True):
        with quiet():
            (reference,) = theirs("a red apple", generator=torch.Generator("cpu").manual_seed(seed), **told).images
        pairs.append((np.asarray(picture.image), np.asarray(reference)))
    return pairs


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=pytest.mark.slow if case.model in SLOW else ()) for name, case in CASES.items()],
)
def test_picture_is_that_of_diffusers(case: Case, checkpoints: Any, bundles: Any) -> None:
    for pair in draw_both(case, checkpoints, bundles):
        assert_same(*pair)


@pytest.mark.parametrize("refiner", ["sdxl", pytest.param("sdxl_refiner", marks=pytest.mark.slow)])
def test_base_and_refiner_are_those_of_diffusers(refiner: str, checkpoints: Any, bundles: Any) -> None:
    """Four steps of five are the refiner's: after two of five, one that doesn't read prompt_2 agrees to 55 dB."""
    settings: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 5.0, "prompt_2": "a car"}
    with Pipeline.load(bundles("sdxl")) as base, Pipeline.load(bundles(refiner)) as second:
        (ours,) = base(
            "a red apple", "blurry", seed=3, noise="torch-cpu", refiner=second, denoising_end=0.2, **settings
        )
    told: Any = settings | {"prompt": "a red apple", "negative_prompt": "blurry"}
    theirs: Any = diffusers.StableDiffusionXLImg2ImgPipeline
    again = theirs(**load_pipeline(checkpoints(refiner)).components, requires_aesthetics_score=refiner != "sdxl")
    first = load_pipeline(checkpoints("sdxl"))
    for pipeline in (first, again):
        pipeline.set_progress_bar_config(disable=True)
    with quiet():
        generator = torch.Generator("cpu").manual_seed(3)
        latents = first(**told, denoising_end=0.2, output_type="latent", generator=generator).images
        (reference,) = again(**told, denoising_start=0.2, image=latents).images
    assert_same(np.asarray(ours.image), np.asarray(reference))


@pytest.fixture(scope="module")
def half_bundles(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundles of `checkpoints` in float16."""

    @functools.cache
    def bundle(name: str) -> Path:
        folder = tmp_path_factory.mktemp("half") / name
        export_bundle(checkpoints(name), folder, Options(dtype={"": "float16"}))
        return folder

    return bundle


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_picture_in_float16(name: str, checkpoints: Any, half_bundles: Any) -> None:
    for ours, theirs in draw_both(CASES[name], checkpoints, half_bundles):
        assert psnr(ours, theirs) >= MIN_PSNR_FLOAT16


@pytest.mark.parametrize(
    "name",
    [
        "sdxl",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("inpainting", "refiner", "pix2pix", "lcm", "sdxl inpainting")
        ),
    ],
)
def test_the_comparison_can_fail(name: str, checkpoints: Any, bundles: Any) -> None:
    for pair in draw_both(CASES[name], checkpoints, bundles, prompt="a blue car at night"):
        assert psnr(*pair) < MIN_PSNR


@pytest.mark.parametrize(
    ("family", "pipeline", "names"),
    [
        ("lcm", diffusers.LatentConsistencyModelPipeline, ["num_inference_steps", "guidance_scale"]),
        ("lcm", diffusers.LatentConsistencyModelImg2ImgPipeline, ["num_inference_steps", "guidance_scale", "strength"]),
        ("sd", diffusers.StableDiffusionImg2ImgPipeline, ["guidance_scale", "strength"]),
        ("sd_inpaint", diffusers.StableDiffusionInpaintPipeline, ["guidance_scale", "strength"]),
        (
            "sd_pix2pix",
            diffusers.StableDiffusionInstructPix2PixPipeline,
            ["guidance_scale", "image_guidance_scale"],
        ),
        ("sdxl", diffusers.StableDiffusionXLImg2ImgPipeline, ["guidance_scale", "strength"]),
        ("sdxl_inpaint", diffusers.StableDiffusionXLInpaintPipeline, ["guidance_scale", "strength"]),
        ("sdxl_refiner", diffusers.StableDiffusionXLImg2ImgPipeline, ["guidance_scale", "strength"]),
    ],
)
def test_defaults_are_those_of_diffusers(family: str, pipeline: Any, names: list[str]) -> None:
    arguments = inspect.signature(pipeline.__call__).parameters
    for name in names:
        assert getattr(FAMILIES[family].defaults, name) == arguments[name].default
