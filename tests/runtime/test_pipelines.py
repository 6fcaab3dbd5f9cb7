"""What each pipeline hands to the loop. `tests/parity/` compares the pictures with those of diffusers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec
from edgediffusion.runtime import ImageConverted, ImageResized, NumpyNoise, Parameters, Pipeline
from edgediffusion.runtime.families import FAMILIES
from edgediffusion.runtime.pipelines import PIPELINES

from . import conftest
from .conftest import SPECS, Opened

NOISY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
LEFT_HALF = Image.fromarray(np.repeat([[255, 0]], 12, axis=1).repeat(16, axis=0).astype(np.uint8))
SETTINGS: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "num_images": 2, "scheduler": "ddim"}


@pytest.fixture
def load(bundle_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pipeline]:
    """The fake bundle, of a family that can do these pipelines, with a UNet of so many channels."""

    def load(*pipelines: str, channels: int = 4) -> Pipeline:
        first, *others = SPECS["unet"].inputs
        sample = replace(first, shape=("batch", channels, "height", "width"))
        spec = GraphSpec("unet", (sample, *others), SPECS["unet"].outputs)

        def unet(feeds: Any) -> dict[str, Array]:
            return conftest.unet({**feeds, "sample": feeds["sample"][:, :4]})

        monkeypatch.setitem(conftest.FUNCTIONS, "unet", unet)
        pipeline = Pipeline.load(bundle_path)
        family = replace(pipeline.bundle.family, pipelines=pipelines)
        graphs = pipeline.bundle.manifest.graphs
        monkeypatch.setitem(graphs, "unet", replace(graphs["unet"], spec=spec))
        monkeypatch.setattr(pipeline.bundle, "family", family)
        pipeline.bundle.release("unet")
        return pipeline

    return load


def shown(opened: Opened) -> Array:
    """The UNet's sample at the first step."""
    return next(feeds["sample"] for name, feeds in opened.calls if name == "unet")


def encoded(pixels: Array) -> Array:
    """What the fake encoder says of (1, 3, height, width): the red of every eighth pixel, everywhere."""
    return pixels[:, :1, ::8, ::8].repeat(4, axis=1)


def pixels() -> Array:
    return np.asarray(NOISY, np.float32).transpose(2, 0, 1)[None] / 255 * 2 - 1


def test_inpainting_shows_a_mask_and_the_picture_without_it(load: Callable[..., Pipeline], opened: Opened) -> None:
    run = load("inpaint", channels=9).steps("", image=NOISY, mask=LEFT_HALF, strength=1, guidance_scale=2, **SETTINGS)
    next(iter(run))
    sample, noise = shown(opened), NumpyNoise(3, 2)
    assert sample.shape == (4, 9, 2, 3)
    np.testing.assert_array_equal(sample[:2], sample[2:])
    np.testing.assert_array_equal(sample[:2, :4], noise.normal((4, 2, 3)))
    # Latents are 8 pixels wide: the first is masked, the second in part, and its corner counts.
    np.testing.assert_array_equal(sample[:, 4], np.broadcast_to([1, 1, 0], (4, 2, 3)))
    kept = encoded(np.where(np.arange(24) < 12, 0, pixels()).astype(np.float32))
    expected = 0.5 * (kept + np.exp(kept / 2) * noise.normal((4, 2, 3)))
    np.testing.assert_allclose(sample[:2, 5:], expected, rtol=1e-6)


def test_inpainting_of_less_strength_starts_from_the_picture(load: Callable[..., Pipeline], opened: Opened) -> None:
    run = load("inpaint", channels=9).steps("", image=NOISY, mask=LEFT_HALF, strength=0.5, guidance_scale=1, **SETTINGS)
    assert [step.index for step in run] == [1]
    noise = NumpyNoise(3, 2)
    latents = 0.5 * (encoded(pixels()) + np.exp(encoded(pixels()) / 2) * noise.normal((4, 2, 3)))
    expected = run.tables.add_noise(latents.astype(np.float32), noise.normal((4, 2, 3)), 1)
    np.testing.assert_allclose(shown(opened)[:, :4], expected, rtol=1e-6)


def test_outside_the_mask_the_latents_are_the_pictures_at_every_step(load: Callable[..., Pipeline]) -> None:
    settings = SETTINGS | {"num_inference_steps": 4}
    run = load("masked_latents").steps("a car", image=NOISY, mask=LEFT_HALF, strength=0.5, **settings)
    noise = NumpyNoise(3, 2)
    latents = 0.5 * (encoded(pixels()) + np.exp(encoded(pixels()) / 2) * noise.normal((4, 2, 3)))
    fresh = noise.normal((4, 2, 3))
    first, second = run
    assert (first.index, second.index) == (2, 3)
    np.testing.assert_allclose(first.latents[..., 2], run.tables.add_noise(latents, fresh, 3)[..., 2], rtol=1e-5)
    np.testing.assert_allclose(second.latents[..., 2], latents[..., 2], rtol=1e-6)
    assert (np.abs(second.latents - latents)[..., :2] > 1e-3).any(axis=(1, 2, 3)).all()


def test_a_mask_that_is_light_everywhere_keeps_nothing(load: Callable[..., Pipeline]) -> None:
    settings: dict[str, Any] = {"image": NOISY, "strength": 0.5} | SETTINGS
    pipeline = load("masked_latents", "image2image")
    everywhere = Image.new("L", NOISY.size, 255)
    *_, masked = pipeline.steps("a car", mask=everywhere, **settings)
    *_, plain = pipeline.steps("a car", **settings)
    np.testing.assert_array_equal(masked.latents, plain.latents)


@pytest.mark.parametrize(("pipeline", "channels"), [("inpaint", 9), ("masked_latents", 4)])
@pytest.mark.parametrize("mask", [Image.new("L", (16, 16)), Image.fromarray(np.eye(16, k=3, dtype=np.uint8) * 255)])
def test_a_mask_without_light_where_latents_are(
    load: Callable[..., Pipeline], pipeline: str, channels: int, mask: Image.Image
) -> None:
    with pytest.raises(UsageError, match="the mask is dark everywhere, so nothing would be drawn anew; paint light"):
        load(pipeline, channels=channels).steps("a car", image=NOISY.crop((0, 0, 16, 16)), mask=mask)


def test_a_mask_of_another_size_and_mode_is_converted_and_that_is_said(load: Callable[..., Pipeline]) -> None:
    pipeline = load("masked_latents")
    with (
        pytest.warns(ImageResized, match="mask resized from 48x32 to 24x16"),
        pytest.warns(ImageConverted, match="mask converted from RGB to L"),
    ):
        run = pipeline.steps("", image=NOISY, mask=LEFT_HALF.convert("RGB").resize((48, 32)))
    assert run.mask is not None
    assert np.abs(np.asarray(run.mask, int) - np.asarray(LEFT_HALF, int)).max() < 64  # Lanczos' filter rings


@pytest.mark.parametrize(("scheduler", "steps", "left"), [("lcm", 4, 4), ("euler", 10, 3)])
def test_strength_shortens_the_way_of_a_distilled_model(
    scheduler: str, steps: int, left: int, load: Callable[..., Pipeline]
) -> None:
    """With a sampler that has no timesteps of distillation it leaves steps out, as for any model."""
    told: dict[str, Any] = {"scheduler": scheduler, "num_inference_steps": steps}
    run = load("distilled_image2image").steps("", image=NOISY, strength=0.3, **told)
    assert len(list(run)) == left
    assert 200 < run.tables.timesteps[run.first_call] < 300


@pytest.mark.parametrize(
    ("strength", "message"),
    [(0, r"strength 0\.0; wanted a number above 0"), (0.04, r"of 20 steps none is left"), (1.5, r"1\.5; wanted")],
)
def test_strengths_that_inpainting_cannot_use(load: Callable[..., Pipeline], strength: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load("masked_latents").steps("", image=NOISY, mask=LEFT_HALF, strength=strength)


def test_pix2pix_shows_the_picture_to_two_branches_of_three(load: Callable[..., Pipeline], opened: Opened) -> None:
    run = load("pix2pix", channels=8).steps("a car", image=NOISY, **SETTINGS)
    next(iter(run))
    sample = shown(opened)
    assert sample.shape == (6, 8, 2, 3)
    np.testing.assert_array_equal(sample[:2, :4], NumpyNoise(3, 2).normal((4, 2, 3)))
    expected = encoded(pixels()).repeat(2, axis=0)
    for branch, image in enumerate([expected, expected, np.zeros_like(expected)]):
        np.testing.assert_array_equal(sample[2 * branch : 2 * branch + 2, 4:], image)


def test_one_model_goes_on_where_another_stopped(load: Callable[..., Pipeline]) -> None:
    """DDIM remembers nothing, so the two halves are the whole."""
    pipeline = load("text2image", "handover")
    settings: dict[str, Any] = {"num_inference_steps": 10, "seed": 3, "scheduler": "ddim"}
    whole = [step.latents for step in pipeline.steps("a car", **settings)]
    first = list(pipeline.steps("a car", denoising_end=0.7, **settings))
    second = pipeline.steps("a car", latents=first[-1].latents, denoising_start=0.7, **settings)
    assert (len(first), len(second)) == (7, 3)
    np.testing.assert_array_equal([step.latents for step in (*first, *second)], whole)


def test_a_handover_is_not_in_the_middle_of_a_step_of_two_calls(load: Callable[..., Pipeline]) -> None:
    pipeline = load("handover")
    latents = np.zeros((1, 4, 2, 2), np.float32)
    for fraction in np.linspace(0.05, 0.95, 19):
        run = pipeline.steps("", latents=latents, denoising_start=fraction, scheduler="heun", num_inference_steps=10)
        assert run.first_call % 2 == 0


def test_a_distilled_unet_takes_the_guidance_scale_itself(
    load: Callable[..., Pipeline], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load("text2image")
    graphs = pipeline.bundle.manifest.graphs
    spec = graphs["unet"].spec
    inputs = (*spec.inputs, TensorSpec("timestep_cond", "float32", ("batch", 6)))
    monkeypatch.setitem(graphs, "unet", replace(graphs["unet"], spec=replace(spec, inputs=inputs)))
    next(iter(pipeline.steps("a car", guidance_scale=8, **SETTINGS)))
    (feeds,) = [feeds for name, feeds in opened.calls if name == "unet"]
    assert feeds["sample"].shape == (2, 4, 2, 2)
    assert feeds["timestep_cond"].shape == (2, 6)


@pytest.mark.parametrize(
    ("pipelines", "settings", "message"),
    [
        (("text2image",), {"image": NOISY}, r"got a prompt \+ image; this model wants a prompt$"),
        (("inpaint",), {"image": NOISY}, r"got a prompt \+ image; this model wants a prompt \+ image \+ mask$"),
        (("pix2pix",), {}, r"got a prompt; this model wants a prompt \+ image$"),
        (
            ("text2image", "image2image"),
            {"mask": NOISY},
            r"got a prompt \+ mask; this model wants a prompt, or a prompt \+ image$",
        ),
        (
            ("text2image",),
            {"image_guidance_scale": 2},
            "image_guidance_scale has no effect on what this model draws from a prompt; leave it out",
        ),
        (
            ("pix2pix",),
            {"image": NOISY, "image_guidance_scale": float("inf")},
            "image_guidance_scale inf; wanted a finite number",
        ),
        (("text2image",), {"denoising_end": 1}, r"denoising_end 1\.0; wanted a number between 0 and 1"),
        (
            ("image2image",),
            {"image": NOISY, "strength": 0.2, "denoising_end": 0.5},
            r"strength 0\.2, denoising_end 0\.5: of 20 steps none is left to do",
        ),
        (("handover",), {"denoising_start": 0.5}, r"denoising_start 0\.5; wanted the latents that were left there"),
    ],
)
def test_what_a_model_cannot_use(load: Callable[..., Pipeline], pipelines: Any, settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(*pipelines).steps("a car", **settings)


def test_families_name_pipelines_that_there_are() -> None:
    for family in FAMILIES.values():
        assert set(family.pipelines) <= PIPELINES.keys()
        assert len({PIPELINES[name].takes for name in family.pipelines}) == len(family.pipelines)


def test_the_parameters_tell_what_had_a_say(load: Callable[..., Pipeline]) -> None:
    parameters = load("pix2pix", channels=8).steps("a car", image=NOISY, **SETTINGS).parameters(0)
    assert (parameters.image_guidance_scale, parameters.strength) == (1.5, None)
    assert Parameters.from_text(parameters.to_text()).image_guidance_scale == 1.5
    assert Parameters.from_json(parameters.to_json()) == parameters
