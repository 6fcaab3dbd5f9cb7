"""A bundle whose graphs are for one batch and size."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.spec import GraphSpec, TensorSpec
from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.golden import tiled
from edgediffusion.runtime.images import ImageResized
from edgediffusion.runtime.manifest import MANIFEST, Manifest, Static

from .conftest import Opened

BATCHES = {"text_encoder": 2, "unet": 4, "vae_decoder": 1, "vae_encoder": 1}
SIZES = {"height": 2, "width": 3, "image_height": 16, "image_width": 24, "sequence_length": 77}


@pytest.fixture
def static_path(bundle_path: Path) -> Path:
    """For two pictures of 24 x 16."""
    manifest = Manifest.read(bundle_path)
    graphs = {
        name: dataclasses.replace(graph, spec=graph.spec.fixed(SIZES | {"batch": BATCHES[name]}))
        for name, graph in manifest.graphs.items()
    }
    static = Static(batch=2, height=16, width=24)
    (bundle_path / MANIFEST).write_text(dataclasses.replace(manifest, graphs=graphs, static=static).to_json())
    return bundle_path


@pytest.fixture
def pipeline(static_path: Path, opened: Opened) -> Pipeline:
    return Pipeline.load(static_path)


def test_its_size_is_the_default(pipeline: Pipeline) -> None:
    assert [picture.image.size for picture in pipeline("a red apple", num_images=2)] == [(24, 16)] * 2
    with pytest.warns(ImageResized):
        (first, _) = pipeline("a red apple", num_images=2, image=Image.new("RGB", (64, 64)))
    assert first.image.size == (24, 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_images": 2, "vae_tiling": True},
            "vae_tiling: this bundle is static, so it has no smaller tiles; leave it",
        ),
        ({"width": 16}, "size 16x16; this bundle is static, for 24x16; draw that, or export it again without --static"),
        (
            {"num_images": 3},
            "num_images 3 at guidance_scale 7.5: a batch of 6 for the UNet; this bundle is static, for 4 "
            r"\(num_images 2 with guidance\); draw that, or export it again without --static: edgediffusion export ",
        ),
        ({"guidance_scale": 1}, "num_images 2 at guidance_scale 1: a batch of 2 for the UNet; this bundle"),
    ],
)
def test_nothing_else_is_drawn(pipeline: Pipeline, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.steps("a red apple", **{"num_images": 2} | settings)


def test_as_many_rows_without_guidance(pipeline: Pipeline) -> None:
    assert len(pipeline("a red apple", num_images=4, guidance_scale=1)) == 4


def test_inspect(static_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(static_path)])
    out = " ".join(capsys.readouterr().out.split())
    assert "sizes static, 2 of 24x16 pixels" in out
    assert "sample float32 (4, 4, 2, 3)" in out
    assert Manifest.read(static_path).static == Static(batch=2, height=16, width=24)


def test_golden_inputs_are_tiled_along_what_is_fixed() -> None:
    spec = GraphSpec("g", (TensorSpec("x", "float32", ("batch", 5)), TensorSpec("y", "float32", (3, 1))), ())
    feeds = tiled({"x": np.array([[1, 2], [3, 4]]), "y": np.array([[7]])}, spec)
    assert feeds["x"].tolist() == [[1, 2, 1, 2, 1], [3, 4, 3, 4, 3]]
    assert feeds["y"].tolist() == [[7], [7], [7]]
