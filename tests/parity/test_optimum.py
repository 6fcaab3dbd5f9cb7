"""Interchange with optimum, which lives in an environment of its own, since it needs an older transformers."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import edgediffusion.bench
from edgediffusion.bench.processes import execute
from edgediffusion.export.reference import load_pipeline
from edgediffusion.export.to_diffusers import to_diffusers
from edgediffusion.export.to_onnx import quiet
from edgediffusion.runtime import Pipeline

from .test_pictures import Picture, assert_same

VARIABLE = "EDGEDIFFUSION_OPTIMUM"
PYTHON = os.environ.get(VARIABLE, "")
DRAW = Path(edgediffusion.bench.__file__).parent / "scripts" / "draw_with_optimum.py"
PROMPT, STEPS, SEED = "a red apple", 5, 3
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
IMAGE = Image.fromarray(PIXELS).resize((64, 64), Image.Resampling.BICUBIC)
IMAGES = pytest.mark.parametrize("image", [None, IMAGE], ids=["from text", "from a picture"])
MODELS = pytest.mark.parametrize("model", ["sd", "sdxl"])
FROM_AN_IMAGE: dict[str, Any] = {
    "sd": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason=f"{VARIABLE} names no Python that has optimum-onnx; see CONTRIBUTING.md"),
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # diffusers with NumPy 2
]


@pytest.fixture(scope="module")
def exported(bundles: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """By the name of a model, the folder that optimum's exporter makes of our bundle, turned back to a checkpoint."""

    @functools.cache
    def export(model: str) -> Path:
        folder = tmp_path_factory.mktemp(f"optimum-{model}")
        to_diffusers(bundles(model), folder / "checkpoint")
        script = "edgediffusion.bench.scripts.export_with_optimum"
        execute([sys.executable, "-m", script, "checkpoint", "exported", PYTHON], folder)
        return folder / "exported"

    return export


@pytest.fixture(scope="module")
def drawn_by_diffusers(checkpoints: Callable[[str], Path]) -> Callable[[str, Image.Image | None], Picture]:
    """The picture of a model, (height, width, 3), with everything that is not named here at its default."""

    def draw(model: str, image: Image.Image | None) -> Picture:
        pipeline = load_pipeline(checkpoints(model))
        if image is not None:
            pipeline = FROM_AN_IMAGE[model](**pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        settings: dict[str, Any] = {} if image is None else {"image": image}
        generator = torch.Generator("cpu").manual_seed(SEED)
        with quiet():
            (picture,) = pipeline(PROMPT, num_inference_steps=STEPS, generator=generator, **settings).images
        return np.asarray(picture)

    return draw


@MODELS
@IMAGES
def test_optimum_draws_with_our_bundle(
    model: str, image: Image.Image | None, bundles: Any, drawn_by_diffusers: Any, tmp_path: Path
) -> None:
    arguments = [str(bundles(model)), PROMPT, str(STEPS), str(SEED), "drawn.png"]
    if image is not None:
        image.save(tmp_path / "image.png")
        arguments.append("image.png")
    execute([PYTHON, str(DRAW), *arguments], tmp_path)
    assert_same(np.asarray(Image.open(tmp_path / "drawn.png")), drawn_by_diffusers(model, image))


@MODELS
@IMAGES
def test_we_draw_with_a_folder_of_optimum(
    model: str, image: Image.Image | None, exported: Any, drawn_by_diffusers: Any
) -> None:
    with Pipeline.load(exported(model)) as pipeline:
        (picture,) = pipeline(PROMPT, image=image, seed=SEED, num_inference_steps=STEPS, noise="torch-cpu")
    assert_same(np.asarray(picture.image), drawn_by_diffusers(model, image))
