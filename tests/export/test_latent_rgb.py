"""The projection of latents to colours, and how it gets into a manifest."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.fake import FakeEngine
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec
from edgediffusion.export import write_bundle
from edgediffusion.export.latent_rgb import add_latent_rgb, fit, main, natural_picture
from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.latents import LatentSpace
from edgediffusion.runtime.manifest import MANIFEST, Manifest
from edgediffusion.runtime.pipeline import BUILTIN
from edgediffusion.runtime.settings import Settings

from ..conftest import SLOW, TINY

TEXT_ONLY = ("lcm", "sd", "sd2", "sd_taesd", "sdxl")
SPACE = LatentSpace(channels=4, pixels_per_latent=8, scaling_factor=0.5, shift_factor=0.25, width=64, height=64)
MIXED = np.array([[1, 2, 0, 0], [0, 1, 0, 1], [0, 0, 2, 1]])  # a linear VAE: colours to channels


def engine(name: str, output: str, side: int | str, function: Callable[[Array], Array]) -> FakeEngine:
    spec = GraphSpec(
        name,
        (TensorSpec("x", "float32", (1, 4 if name == "vae_decoder" else 3, side, side)),),
        (TensorSpec(output, "float32", ("batch", "channels", "height", "width")),),
    )
    return FakeEngine(spec, lambda feeds: {output: function(feeds["x"])})


def shrunk(sample: Array) -> Array:
    n, c, height, width = sample.shape
    mean = sample.reshape(n, c, height // 8, 8, width // 8, 8).mean(axis=(3, 5))
    encoded: Array = np.einsum("nchw,cd->ndhw", mean, MIXED).astype(np.float32)
    return encoded


def grown(latents: Array) -> Array:
    colours = np.einsum("nchw,cd->ndhw", latents, np.linalg.pinv(MIXED)).astype(np.float32)
    sample: Array = colours.repeat(8, axis=2).repeat(8, axis=3)
    return sample


@pytest.mark.parametrize("name", ["latent_sample", "latent_parameters"])
@pytest.mark.parametrize("side", ["size", 64])
def test_a_linear_vae_is_found_exactly(name: str, side: int | str) -> None:
    def encode(sample: Array) -> Array:
        mean = shrunk(sample)
        return mean if name == "latent_sample" else np.concatenate([mean, np.ones_like(mean)], axis=1)

    decoder_side = side if isinstance(side, str) else side // 8
    encoder = engine("vae_encoder", name, side, encode)
    fitted = fit(encoder, engine("vae_decoder", "sample", decoder_side, grown), SPACE)
    assert fitted.r2 == 1
    # colours = latents_of_the_vae @ pinv, and the UNet's latents are those shifted and scaled.
    latents = np.random.default_rng(0).standard_normal((5, 4))
    in_reach = latents @ np.linalg.pinv(MIXED) @ MIXED
    wanted = in_reach @ np.linalg.pinv(MIXED)
    found = (in_reach - SPACE.shift_factor) * SPACE.scaling_factor @ np.array(fitted.weights) + np.array(fitted.bias)
    np.testing.assert_allclose(found, wanted, atol=1e-4)  # five digits are kept


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in sorted(TINY)]
)
def test_every_bundle_has_one(bundles: Callable[[str], Path], name: str) -> None:
    projection = Manifest.read(bundles(name)).latent_rgb
    assert projection is not None
    assert np.shape(projection.weights) == (4, 3)
    assert np.shape(projection.bias) == (3,)
    assert 0 < projection.r2 <= 1
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    settings: Settings = {"seed": 0, "num_inference_steps": 4}
    if name not in TEXT_ONLY:
        settings["image"] = image
    if "inpaint" in name:
        settings["mask"] = image.convert("L")
    with Pipeline.load(bundles(name)) as pipeline:
        run = pipeline.steps("a", **settings)
        *_, last = run
        (preview,) = run.preview(last)
        assert preview.size == (64, 64)
        if name == "sd_taesd":
            assert preview.tobytes() == pipeline.decode(last.x0())[0].tobytes()


def test_the_builtin_one_is_what_the_command_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(BUILTIN, tmp_path / "copy")
    manifest = Manifest.read(BUILTIN)
    schema = {"schema": 3, **dataclasses.asdict(manifest)}
    del schema["latent_rgb"]
    (tmp_path / "copy" / MANIFEST).write_text(json.dumps(schema))
    assert Manifest.read(tmp_path / "copy").latent_rgb is None
    assert main([str(tmp_path / "copy")]) == 0
    assert "previews: a linear projection of the latents explains 63% of the variance of th" in capsys.readouterr().out
    again = Manifest.read(tmp_path / "copy")
    assert manifest.latent_rgb is not None
    assert again.latent_rgb is not None
    # Sums in another order, on another machine.
    np.testing.assert_allclose(again.latent_rgb.weights, manifest.latent_rgb.weights, atol=1e-3)
    assert dataclasses.replace(again, latent_rgb=None) == dataclasses.replace(manifest, latent_rgb=None)
    assert (BUILTIN / MANIFEST).read_text() == manifest.to_json()


def test_what_cannot_be_fitted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert f"edgediffusion: error: {tmp_path}: no bundle here" in capsys.readouterr().err
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.onnx").touch()
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(BundleError, match="written with another tool, it has no manifest; export it with edgediff"):
        add_latent_rgb(tmp_path)


def test_an_export_whose_vae_does_not_run_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(path: Path) -> float:
        raise BundleError("no bfloat16")

    lines: list[str] = []
    monkeypatch.setattr(write_bundle, "add_latent_rgb", refuse)
    write_bundle._add_latent_rgb(tmp_path, lines.append)
    assert lines == ["previews: none, since the VAE does not run on the CPU here (no bfloat16)"]


def test_pictures_of_the_fit_have_the_statistics_of_photographs() -> None:
    picture = natural_picture(64, 48, np.random.default_rng(1))
    assert picture.shape == (1, 3, 64, 48)
    assert np.abs(picture).max() <= 1
    assert np.corrcoef(picture[0].reshape(3, -1))[0, 1] > 0.2
    spectrum = np.abs(np.fft.fft(natural_picture(64, 64, np.random.default_rng(2))[0], axis=2)).mean(axis=(0, 1))
    assert spectrum[2] / spectrum[16] > 3
