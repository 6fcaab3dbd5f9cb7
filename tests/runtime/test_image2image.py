from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediffusion.engines.errors import UnknownName, UsageError
from edgediffusion.runtime import ImageResized, NumpyNoise, Parameters, Pipeline
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.images import open_image
from edgediffusion.runtime.manifest import MANIFEST
from edgediffusion.runtime.metadata import read_parameters
from edgediffusion.runtime.schedulers import SAMPLERS

from .conftest import Opened

NOISY = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))


@pytest.fixture
def pipeline(bundle_path: Path, opened: Opened) -> Pipeline:
    return Pipeline.load(bundle_path)


@pytest.mark.parametrize(
    ("strength", "steps"), [(1.0, 10), (0.99, 9), (0.8, 8), (0.55, 5), (0.1, 1), (np.float32(0.5), 5)]
)
def test_the_strength_decides_how_many_steps_are_done(pipeline: Pipeline, strength: float, steps: int) -> None:
    run = pipeline.steps("", image=NOISY, num_inference_steps=10, strength=strength)
    assert len(run) == steps
    assert [step.index for step in run] == list(range(10 - steps, 10))


@pytest.mark.parametrize("name", [sampler.name for sampler in SAMPLERS if sampler.calls_per_step == 2])
def test_a_step_of_two_calls_is_not_cut_in_half(pipeline: Pipeline, name: str) -> None:
    run = pipeline.steps("", image=NOISY, scheduler=name, num_inference_steps=10, strength=0.3)
    assert [step.index for step in run] == [14, 15, 16, 17, 18]


def test_it_starts_from_a_sample_of_the_picture_and_the_noise_of_its_step(pipeline: Pipeline, opened: Opened) -> None:
    run = pipeline.steps(
        "", image=NOISY, num_inference_steps=4, strength=0.5, seed=3, num_images=2, guidance_scale=1, scheduler="ddim"
    )
    next(iter(run))
    (encoded,) = [feeds["sample"] for name, feeds in opened.calls if name == "vae_encoder"]
    np.testing.assert_array_equal(encoded, np.asarray(NOISY, np.float32).transpose(2, 0, 1)[None] / 255 * 2 - 1)
    noise = NumpyNoise(3, 2)
    # The fake encoder gives the red of every eighth pixel as each mean and as each logarithm of a variance.
    red = encoded[:, :1, ::8, ::8]
    image_latents = 0.5 * (red + np.exp(red / 2) * noise.normal((4, 2, 3)))
    expected = run.tables.add_noise(image_latents, noise.normal((4, 2, 3)), 2)
    (shown,) = [feeds["sample"] for name, feeds in opened.calls if name == "unet"]
    np.testing.assert_allclose(shown, expected, rtol=1e-6)


def test_the_size_is_that_of_the_picture_rounded_down(pipeline: Pipeline) -> None:
    run = pipeline.steps("", image=NOISY)
    assert (run.width, run.height) == (24, 16)
    with pytest.warns(ImageResized, match="image resized from 30x17 to 24x16"):
        (image,) = pipeline("", image=NOISY.resize((30, 17)), num_inference_steps=2)
    assert image.image.size == (24, 16)
    with pytest.warns(ImageResized, match="image resized from 24x16 to 8x32"):
        (image,) = pipeline("", image=NOISY, width=8, height=32, num_inference_steps=2)
    assert image.image.size == (8, 32)


def test_the_strength_is_in_the_parameters(pipeline: Pipeline) -> None:
    (image,) = pipeline("a red apple", image=NOISY, strength=0.5, seed=1, num_inference_steps=4)
    assert image.parameters.strength == 0.5
    assert image.parameters.seed == 1
    assert "Denoising strength: 0.5" in image.parameters.to_text()
    assert Parameters.from_text(image.parameters.to_text()).strength == 0.5
    assert pipeline.steps("", image=NOISY).strength == 0.8
    assert pipeline("a red apple")[0].parameters.strength is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.5}, "strength has no effect on what this model draws from a prompt; leave it out"),
        ({"image": NOISY, "strength": -0.1}, "strength -0.1; wanted a number above 0, 1 at most"),
        ({"image": NOISY, "strength": 1.01}, "strength 1.01; wanted a number above 0, 1 at most"),
        ({"image": NOISY, "strength": float("nan")}, "strength nan; wanted a number above 0, 1 at most"),
        ({"image": NOISY, "strength": 0}, "strength 0.0; wanted a number above 0, 1 at most"),
        (
            {"image": NOISY, "strength": 0.04},
            "strength 0.04: of 20 steps none is left to do; take more steps, or another fraction",
        ),
        (
            {"image": NOISY, "latents": np.zeros((1, 4, 2, 3), np.float32)},
            "latents and an image to start from; wanted one of them",
        ),
        ({"image": NOISY.resize((7, 16))}, "width 0; wanted a positive multiple of 8"),
    ],
)
def test_what_cannot_be_used(pipeline: Pipeline, opened: Opened, arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.steps("a red apple", **arguments)
    assert opened.calls == []


def test_a_bundle_without_an_encoder(bundle_path: Path, opened: Opened) -> None:
    pipeline = Pipeline.load(bundle_path)
    del pipeline.bundle.manifest.graphs["vae_encoder"]
    with pytest.raises(UnknownName, match="unknown component 'vae_encoder'; known: text_encoder, unet, vae_decoder"):
        pipeline.steps("", image=NOISY)


# The command


def test_the_options_reach_the_pipeline(bundle_path: Path, opened: Opened, tmp_path: Path) -> None:
    NOISY.save(tmp_path / "start.png")
    options = f"--init-image {tmp_path}/start.png --strength 0.4 --seed 2 --num-inference-steps 5 -o {tmp_path}/out.png"
    assert main(["generate", "a car", "--bundle", str(bundle_path), *options.split()]) == 0
    (drawn,) = Pipeline.load(bundle_path)("a car", image=NOISY, strength=0.4, seed=2, num_inference_steps=5)
    assert read_parameters(tmp_path / "out.png") == drawn.parameters
    with Image.open(tmp_path / "out.png") as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(drawn.image))


@pytest.mark.filterwarnings("default")  # the command's own
def test_a_mask_and_what_it_is_a_mask_of(
    bundle_path: Path, opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    NOISY.save(tmp_path / "a.png")
    command = ["generate", "a car", "--bundle", str(bundle_path), "-o", f"{tmp_path}/b.png"]
    assert main([*command, "--mask", f"{tmp_path}/a.png"]) == 2
    message = "got a prompt + mask; this model wants a prompt, or a prompt + image, or a prompt + image + mask"
    assert capsys.readouterr().err == f"edgediffusion: error: {message}\n"
    assert main([*command, "--mask", f"{tmp_path}/a.png", "--init-image", f"{tmp_path}/a.png"]) == 0
    assert capsys.readouterr().err == "edgediffusion: warning: mask converted from RGB to L\n"
    assert read_parameters(tmp_path / "b.png").strength == 1.0


def test_a_picture_lies_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    NOISY.save(tmp_path / "photo.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "photo.png")), np.rot90(np.asarray(NOISY), -1))


def test_files_that_are_no_pictures(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a picture; wanted one in a format such as PNG or JPEG"):
        open_image(bundle_path / MANIFEST)
    with pytest.raises(UsageError, match=r"none\.png: cannot be read as a picture \(.*No such file"):
        open_image(tmp_path / "none.png")
    NOISY.save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:700])
    with pytest.raises(UsageError, match=r"half\.png: cannot be read as a picture"):
        open_image(tmp_path / "half.png")
