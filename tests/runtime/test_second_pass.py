"""Runs of two passes: in a larger size, or with a refiner. `tests/parity/` compares the pictures with diffusers'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediffusion.engines.errors import UnknownName, UsageError
from edgediffusion.runtime import Parameters, Pipeline
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.metadata import read_parameters

from .conftest import Opened


@pytest.fixture
def pipeline(bundle_path: Path, opened: Opened) -> Pipeline:
    return Pipeline.load(bundle_path)


@pytest.fixture
def refiner(bundle_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The same model, able to go on with what another has begun."""
    pipeline = Pipeline.load(bundle_path)
    monkeypatch.setattr(pipeline.bundle, "family", replace(pipeline.bundle.family, pipelines=("handover",)))
    return pipeline


@pytest.mark.parametrize("upscaler", ["latent", "pixels"])
def test_the_second_pass_is_larger_and_does_a_part_of_the_steps(pipeline: Pipeline, upscaler: str) -> None:
    run = pipeline.steps(
        "a car", num_inference_steps=5, num_images=2, hires_scale=1.7, hires_strength=0.4, hires_upscaler=upscaler
    )
    steps = list(run)
    assert len(run) == len(steps) == 7
    assert [step.index for step in steps] == [0, 1, 2, 3, 4, 3, 4]
    # 1.7 times 16 pixels are 27, of which three latents of 8 are whole.
    assert [step.latents.shape for step in steps] == [(2, 4, 2, 2)] * 5 + [(2, 4, 3, 3)] * 2
    pictures = run.images(steps[-1].latents)
    assert [picture.image.size for picture in pictures] == [(24, 24)] * 2
    first, second = (np.asarray(picture.image) for picture in pictures)
    assert (first != second).any()


def test_what_was_given_to_start_from_is_for_the_first_pass_alone(pipeline: Pipeline, opened: Opened) -> None:
    list(pipeline.steps("a car", image=Image.new("RGB", (16, 16)), num_inference_steps=4, hires_scale=2))
    assert [name for name, _ in opened.calls].count("vae_encoder") == 1


def test_both_passes_are_of_one_seed(pipeline: Pipeline) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 4, "hires_scale": 2, "hires_upscaler": "pixels"}
    (picture,) = pipeline("a car", **settings)
    seed = picture.parameters.seed
    assert seed is not None
    (same,) = pipeline("a car", seed=seed, **settings)
    np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(same.image))
    run = pipeline.steps("a car", seed=1, **settings)
    *_, last = replace(run, seed=seed)
    np.testing.assert_array_equal(np.asarray(run.images(last.latents)[0].image), np.asarray(same.image))


def test_a_refiner_does_the_rest(pipeline: Pipeline, refiner: Pipeline) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 10, "seed": 3, "scheduler": "ddim"}
    run = pipeline.steps("a car", refiner=refiner, denoising_end=0.7, **settings)
    refined = list(run)
    assert len(run) == len(refined) == 10
    # DDIM remembers nothing, so with the same model in both places this is one run.
    for one, other in zip(refined, pipeline.steps("a car", **settings), strict=True):
        np.testing.assert_array_equal(one.latents, other.latents)
    assert pipeline.steps("a car", refiner=refiner).denoising_end == 0.8


def test_a_refiner_reads_the_embeddings_too(pipeline: Pipeline, refiner: Pipeline) -> None:
    embeds = np.random.default_rng(0).standard_normal((1, 77, 8)).astype(np.float32)
    settings: dict[str, Any] = {"num_inference_steps": 10, "seed": 3, "scheduler": "ddim", "prompt_embeds": embeds}
    refined = list(pipeline.steps(refiner=refiner, denoising_end=0.7, **settings))
    for one, other in zip(refined, pipeline.steps(**settings), strict=True):
        np.testing.assert_array_equal(one.latents, other.latents)


def test_embeddings_that_a_refiner_cannot_read(pipeline: Pipeline, refiner: Pipeline) -> None:
    refiner.tokenizers = {"text_encoder_2": refiner.tokenizers["text_encoder"]}
    embeds = np.zeros((1, 77, 8), np.float32)
    with pytest.raises(UsageError, match="prompt_embeds and a refiner with other text encoders; wanted a prompt, or"):
        pipeline.steps(refiner=refiner, prompt_embeds=embeds)


def test_the_parameters_tell_both_passes(pipeline: Pipeline, refiner: Pipeline) -> None:
    parameters = pipeline.steps("a car", hires_scale=2).parameters(0)
    told = parameters.width, parameters.hires_scale, parameters.hires_strength, parameters.hires_upscaler
    assert told == (16, 2.0, 0.6, "latent")
    assert "Denoising strength: 0.6, Hires upscale: 2.0, Hires upscaler: latent" in parameters.to_text()
    assert Parameters.from_json(parameters.to_json()) == parameters
    refined = pipeline.steps("a car", refiner=refiner).parameters(0)
    assert (refined.refiner, refined.denoising_end, refined.hires_scale) == ("a test", 0.8, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hires_scale": 1}, r"hires_scale 1\.0; wanted a number above 1 and up to 4096, such as 2"),
        ({"hires_scale": 1e308}, r"hires_scale 1e\+308; wanted a number above 1 and up to 4096"),
        ({"hires_scale": float("nan")}, "hires_scale nan; wanted a number above 1"),
        ({"hires_scale": 2, "hires_strength": 0}, r"hires_strength 0\.0; wanted a number above 0, 1 at most"),
        ({"hires_scale": 2, "hires_strength": 0.01}, r"strength 0\.01: of 20 steps none is left to do"),
        ({"hires_scale": 2, "denoising_end": 0.8}, "hires_scale and denoising_end; wanted one of them"),
        ({"hires_strength": 0.5}, "hires_strength has no effect without hires_scale; leave it out"),
        ({"hires_upscaler": "latent"}, "hires_upscaler has no effect without hires_scale; leave it out"),
    ],
)
def test_what_cannot_be_used(pipeline: Pipeline, settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.steps("a car", **settings)


def test_unknown_upscalers_and_refiners_that_are_none(pipeline: Pipeline) -> None:
    with pytest.raises(UnknownName, match="unknown hires_upscaler 'esrgan'; known: latent, pixels"):
        pipeline.steps("a car", hires_scale=2, hires_upscaler="esrgan")
    with pytest.raises(UsageError, match=r"got a prompt \+ denoising_start; this model wants a prompt, or"):
        pipeline.steps("a car", refiner=pipeline)


def test_the_options_reach_the_pipeline(bundle_path: Path, opened: Opened, tmp_path: Path) -> None:
    command = ["generate", "a car", "--bundle", str(bundle_path), "--seed", "2", "--num-inference-steps", "5"]
    options = f"--hires-scale 2 --hires-strength 0.8 --hires-upscaler pixels -o {tmp_path}/hires.png"
    assert main([*command, *options.split()]) == 0
    settings: dict[str, Any] = {"hires_scale": 2, "hires_strength": 0.8, "hires_upscaler": "pixels"}
    (drawn,) = Pipeline.load(bundle_path)("a car", seed=2, num_inference_steps=5, **settings)
    with Image.open(tmp_path / "hires.png") as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(drawn.image))


def test_a_refiner_on_the_command_line(
    bundle_path: Path,
    opened: Opened,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from edgediffusion.runtime.families import FAMILIES

    family = replace(FAMILIES["sd"], pipelines=("text2image", "handover"))
    monkeypatch.setitem(FAMILIES, "sd", family)
    options = f"--bundle {bundle_path} --refiner {bundle_path} --denoising-end 0.5 -o {tmp_path}/a.png"
    assert main(["generate", "a car", "--num-inference-steps", "4", *options.split()]) == 0
    assert opened.names.count("unet") == 2
    assert read_parameters(tmp_path / "a.png").denoising_end == 0.5
    assert main(["generate", "--from", f"{tmp_path}/a.png", "--bundle", str(bundle_path)]) == 2
    message = f"{tmp_path}/a.png: drawn with refiner a test from refiner that it does not hold; give it with --refiner"
    assert capsys.readouterr().err == f"edgediffusion: error: {message}\n"
