"""Whole pictures against diffusers: same weights, prompt and starting noise."""

from __future__ import annotations

from collections.abc import Iterator
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
from edgediffusion.runtime import ImageResized, Pipeline
from edgediffusion.runtime.pipeline import BUILTIN

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
}
# Those that draw noise as they go, from the same generator, and what diffusers is told beside the class.
STOCHASTIC: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "ddpm": (diffusers.DDPMScheduler, {}, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}, {}),
    "dpm2_a": (diffusers.KDPM2AncestralDiscreteScheduler, {}, {}),
    "dpmpp_2m_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, {}),
    "sa_solver": (diffusers.SASolverScheduler, {}, {}),
    "lcm": (diffusers.LCMScheduler, {}, {}),
    "tcd": (diffusers.TCDScheduler, {}, {"eta": 0.3}),
    "dpmpp_sde": (diffusers.DPMSolverSDEScheduler, {"noise_sampler_seed": [3, 4]}, {}),
}
STEPS = 20
GUIDANCE = 7.5
# Both compute in float32, so they differ where a value lies within 1e-5 of the edge between two of the 256 levels.
MIN_PSNR = 45.0
Picture = NDArray[np.uint8]


class Pair:
    """One model twice: ours and diffusers'."""

    def __init__(self, ours: Path, theirs: Path) -> None:
        self.ours = Pipeline.load(ours)
        self.theirs = load_pipeline(theirs)
        self.theirs.set_progress_bar_config(disable=True)
        self.pipeline_config = self.theirs.scheduler.config

    def draw(
        self, prompt: str, scheduler: str, latents: NDArray[np.float32], **settings: Any
    ) -> tuple[Picture, Picture]:
        """(height, width, 3) by ours and by diffusers."""
        settings |= {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
        self.theirs.scheduler = SCHEDULERS[scheduler].from_config(self.theirs.scheduler.config)
        height, width = (8 * n for n in latents.shape[2:])
        (ours,) = self.ours(prompt, scheduler=scheduler, latents=latents, height=height, width=width, **settings)
        with quiet():
            (theirs,) = self.theirs(
                prompt, latents=torch.from_numpy(latents), height=height, width=width, **settings
            ).images
        return np.asarray(ours.image), np.asarray(theirs)


@pytest.fixture(scope="module")
def tiny(bundle: Path, checkpoint: Path) -> Iterator[Pair]:
    pair = Pair(bundle, checkpoint)
    with pair.ours:
        yield pair


@pytest.fixture(scope="module")
def builtin() -> Iterator[Pair]:
    pair = Pair(BUILTIN, BUILTIN)
    with pair.ours:
        yield pair


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((1, 4, height, width), np.float32)


def psnr(a: Picture, b: Picture) -> float:
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def assert_same(ours: Picture, theirs: Picture) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 20, "a flat picture agrees with anything"
    assert psnr(ours, theirs) >= MIN_PSNR


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_picture_equals_that_of_diffusers(tiny: Pair, scheduler: str) -> None:
    assert_same(*tiny.draw("a red apple", scheduler, noise(8, 8), negative_prompt="blurry, dark"))


def test_picture_of_a_size_that_the_unet_cannot_halve(tiny: Pair) -> None:
    assert_same(*tiny.draw("a wide view", "euler", noise(7, 13)))


def test_the_comparison_can_fail(tiny: Pair) -> None:
    ours, _ = tiny.draw("a red apple", "ddim", noise(8, 8))
    _, theirs = tiny.draw("a red apply", "ddim", noise(8, 8))
    assert psnr(ours, theirs) < MIN_PSNR


def test_a_batch_equals_its_pictures_one_by_one(tiny: Pair) -> None:
    batch = tiny.ours("a rocket", seed=3, num_images=4)
    singles = [tiny.ours("a rocket", seed=3 + k)[0] for k in range(4)]
    for together, alone in zip(batch, singles, strict=True):
        assert psnr(np.asarray(together.image), np.asarray(alone.image)) >= MIN_PSNR
    assert psnr(np.asarray(batch[0].image), np.asarray(batch[1].image)) < MIN_PSNR


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde: the highest level, rounded to float32
@pytest.mark.parametrize("scheduler", [*SCHEDULERS, *STOCHASTIC])
def test_a_seed_is_that_of_diffusers(builtin: Pair, scheduler: str) -> None:
    """With torch's random numbers, a batch from seed 3 is diffusers' from a list of generators of seeds 3 and 4."""
    if scheduler == "dpmpp_sde":
        pytest.importorskip("torchsde")
    kind, config, arguments = STOCHASTIC.get(scheduler) or (SCHEDULERS[scheduler], {}, {})
    builtin.theirs.scheduler = kind.from_config(builtin.pipeline_config, **config)
    settings: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": GUIDANCE}
    ours = builtin.ours("a red apple, 3d", scheduler=scheduler, seed=3, num_images=2, noise="torch-cpu", **settings)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (3, 4)]
    with quiet():
        theirs = builtin.theirs(
            "a red apple, 3d", num_images_per_prompt=2, generator=generators, **settings, **arguments
        ).images
    for picture, reference in zip(ours, theirs, strict=True):
        assert_same(np.asarray(picture.image), np.asarray(reference))


FROM_AN_IMAGE = {
    **SCHEDULERS,
    "heun": diffusers.HeunDiscreteScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
}
ALL = FROM_AN_IMAGE | {"lcm": diffusers.LCMScheduler}


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.filterwarnings("ignore:You have passed 2 text prompts:FutureWarning")  # one image for two pictures
@pytest.mark.parametrize(
    ("scheduler", "strength"), [*((name, 0.6) for name in FROM_AN_IMAGE), ("heun", 0.2), ("ddim", 1.0)]
)
def test_image_to_image_is_that_of_diffusers(builtin: Pair, scheduler: str, strength: float) -> None:
    """One picture resized by both, a batch of two, noise for the encoder's sample and then for the step."""
    kind: Any = diffusers.StableDiffusionImg2ImgPipeline
    theirs = kind(**builtin.theirs.components)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = FROM_AN_IMAGE[scheduler].from_config(builtin.pipeline_config)
    settings: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 5.0, "strength": strength}
    rows, columns = np.mgrid[:60, :69]
    image = Image.fromarray(np.stack([4 * rows, 3 * columns, 2 * (rows + columns)], axis=-1).clip(0, 255).astype("u1"))
    with pytest.warns(ImageResized):
        ours = builtin.ours(
            "a blue car, 3d", image=image, scheduler=scheduler, seed=3, num_images=2, noise="torch-cpu", **settings
        )
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in (3, 4)]
    with quiet():
        references = theirs(
            "a blue car, 3d", image=image, num_images_per_prompt=2, generator=generators, **settings
        ).images
    for picture, reference in zip(ours, references, strict=True):
        assert_same(np.asarray(picture.image), np.asarray(reference))


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.parametrize(
    ("scheduler", "strength"), [*((name, 0.6) for name in FROM_AN_IMAGE), ("ddim", 1.0), ("lcm", 1.0)]
)
def test_inpainting_with_masked_latents_is_that_of_diffusers(builtin: Pair, scheduler: str, strength: float) -> None:
    """With a UNet of 4 channels; history and fresh noise of the samplers run on beside what is kept."""
    kind: Any = diffusers.StableDiffusionInpaintPipeline
    with quiet():  # the config is not that of an inpainting checkpoint
        theirs = kind(**builtin.theirs.components)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = ALL[scheduler].from_config(builtin.pipeline_config)
    settings: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 5.0, "strength": strength}
    rows, columns = np.mgrid[:64, :72]
    image = Image.fromarray(np.stack([4 * rows, 3 * columns, 2 * (rows + columns)], axis=-1).clip(0, 255).astype("u1"))
    mask = Image.fromarray((np.hypot(rows - 30, columns - 30) < 24).astype(np.uint8) * 255)
    (ours,) = builtin.ours(
        "a blue car, 3d", image=image, mask=mask, scheduler=scheduler, seed=3, noise="torch-cpu", **settings
    )
    with quiet():
        (reference,) = theirs(
            "a blue car, 3d",
            image=image,
            mask_image=mask,
            width=72,
            height=64,
            generator=torch.Generator("cpu").manual_seed(3),
            **settings,
        ).images
    assert_same(np.asarray(ours.image), np.asarray(reference))


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.parametrize("upscaler", ["latent", "pixels"])
def test_two_passes_are_those_of_diffusers_by_hand(builtin: Pair, upscaler: str) -> None:
    """Text to image, then, enlarged by torch or by diffusers, image to image, each with the noise of the seed."""
    prompt, settings = "a blue car, 3d", {"num_inference_steps": 5, "guidance_scale": 5.0}
    (ours,) = builtin.ours(
        prompt,
        seed=3,
        noise="torch-cpu",
        scheduler="euler_a",
        width=64,
        height=72,
        hires_scale=1.5,
        hires_strength=0.8,
        hires_upscaler=upscaler,
        **settings,  # type: ignore[arg-type]
    )
    kind: Any = diffusers.StableDiffusionImg2ImgPipeline
    again = kind(**builtin.theirs.components)
    again.set_progress_bar_config(disable=True)
    again.scheduler = builtin.theirs.scheduler = ALL["euler_a"].from_config(builtin.pipeline_config)
    told: Any = settings | {"generator": torch.Generator("cpu").manual_seed(3)}
    with quiet():
        kept = "latent" if upscaler == "latent" else "pil"
        first = builtin.theirs(prompt, width=64, height=72, output_type=kept, **told).images
        if upscaler == "latent":
            enlarged = torch.nn.functional.interpolate(first, size=(13, 12), mode="bilinear")
        else:
            enlarged = first[0].resize((96, 104), Image.Resampling.LANCZOS)
        told["generator"] = torch.Generator("cpu").manual_seed(3)
        (reference,) = again(prompt, image=enlarged, strength=0.8, **told).images
    assert reference.size == (96, 104)
    assert_same(np.asarray(ours.image), np.asarray(reference))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_built_in_model_draws_what_diffusers_draws(builtin: Pair, scheduler: str) -> None:
    assert_same(*builtin.draw("a red apple, 3d", scheduler, noise(16, 16)))
