"""Large pictures through the VAE in tiles. Memory is measured in `bench/`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediffusion.runtime import Pipeline
from edgediffusion.runtime import pipeline as pipeline_module
from edgediffusion.runtime.arrays import F32
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.metadata import read_parameters
from edgediffusion.runtime.tiling import in_tiles, starts

from .conftest import Opened


@pytest.mark.parametrize(("size", "tile"), [(64, 64), (65, 64), (96, 64), (200, 64), (33, 16), (16, 64)])
def test_tiles_cover_a_side_and_share_a_quarter(size: int, tile: int) -> None:
    begins = starts(size, tile)
    assert begins[0] == 0
    assert begins[-1] == max(0, size - tile)
    assert all(0 < b - a <= tile - tile // 4 for a, b in itertools.pairwise(begins))


@pytest.mark.parametrize(("source_step", "result_step"), [(1, 8), (8, 1)])
@pytest.mark.parametrize(("height", "width"), [(40, 23), (16, 33), (12, 12)])
def test_what_looks_at_single_places_is_the_same_in_tiles(
    height: int, width: int, source_step: int, result_step: int
) -> None:
    def network(x: F32) -> F32:
        x = x[:, :, ::source_step, ::source_step]
        return 2 * x.repeat(result_step, axis=2).repeat(result_step, axis=3)

    shape = (1, 3, height * source_step, width * source_step)
    source = np.random.default_rng(0).standard_normal(shape, np.float32)
    tiled = in_tiles(network, source, 16, source_step, result_step)
    np.testing.assert_allclose(tiled, network(source), rtol=1e-6)


def test_what_a_network_sees_at_a_false_edge_is_left_out() -> None:
    def network(x: F32) -> F32:
        result = np.zeros_like(x)
        result[:, :, [0, -1]] = result[..., [0, -1]] = 99
        return result

    tiled = in_tiles(network, np.zeros((1, 1, 40, 40), np.float32), 16, 1, 1)
    assert (tiled[0, 0, 1:-1, 1:-1] == 0).all()
    assert (tiled[0, 0, 0] == 99).all()


def test_the_built_in_models_seams_do_not_show() -> None:
    """Steps from column to column, averaged over the rows, in 8-bit levels: a seam is one that the whole has not.

    Tiles that are put side by side have seams of 99 levels; blended ones are a few off wherever the picture has edges.
    """
    with Pipeline.load(device="cpu") as pipeline:
        *_, last = pipeline.steps("a red apple, 3d", seed=1, width=256, height=256, num_inference_steps=4)
        latents = pipeline.latent_space.for_decoder(last.latents)
        engine = pipeline.bundle.engine("vae_decoder")

        def decode(x: F32) -> F32:
            sample: F32 = engine({"latent_sample": x})["sample"]
            return np.clip(sample, -1, 1)

        whole = decode(latents)
        blended = in_tiles(decode, latents, 24, 1, 8)
        halves = np.concatenate([decode(latents[..., :16]), decode(latents[..., 16:])], axis=3)
    assert _largest_seam(blended, whole) < 8
    assert _largest_seam(halves, whole) > 40


def _largest_seam(tiled: F32, whole: F32) -> float:
    steps = [np.abs(np.diff(sample, axis=3)).mean(axis=(0, 1, 2)) for sample in (tiled, whole)]
    return float(127.5 * (steps[0] - steps[1]).max())


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "TILE", 4)


@pytest.mark.usefixtures("small_tiles")
def test_a_run_encodes_and_decodes_in_tiles(bundle_path: Path, opened: Opened) -> None:
    pipeline = Pipeline.load(bundle_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    settings: dict[str, Any] = {"image": image, "seed": 1, "num_inference_steps": 4}
    (whole,), (tiled,) = (pipeline("a car", **settings, vae_tiling=tiling) for tiling in (None, True))
    # The fake networks look at single places.
    np.testing.assert_array_equal(np.asarray(whole.image), np.asarray(tiled.image))
    decoded = [feeds["latent_sample"].shape for name, feeds in opened.calls if name == "vae_decoder"]
    assert decoded == [(1, 4, 8, 8)] + 9 * [(1, 4, 4, 4)]
    assert [name for name, _ in opened.calls].count("vae_encoder") == 10
    assert (whole.parameters.vae_tiling, tiled.parameters.vae_tiling) == (None, True)


@pytest.mark.usefixtures("small_tiles")
def test_the_option_reaches_the_pipeline(bundle_path: Path, opened: Opened, tmp_path: Path) -> None:
    options = f"--bundle {bundle_path} --size 64x64 --num-inference-steps 1 --vae-tiling -o {tmp_path}/a.png"
    assert main(["generate", "a car", *options.split()]) == 0
    assert [name for name, _ in opened.calls].count("vae_decoder") == 9
    assert read_parameters(tmp_path / "a.png").vae_tiling is True
