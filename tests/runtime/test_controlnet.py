from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediffusion.engines.errors import UnknownName, UsageError
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec
from edgediffusion.runtime import Bundle, Parameters, Pipeline
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.manifest import Variant

from . import conftest
from .conftest import SPECS, WIDTH, Opened

GREY, WHITE = (Image.new("RGB", (16, 16), (level,) * 3) for level in (51, 255))
UNET = SPECS["unet"]
RESIDUALS = {
    "down_block_additional_residual_0": ("batch", 4, "height", "width"),
    "mid_block_additional_residual": ("batch", 4, "height", "width"),
}
CONTROLLED = GraphSpec(
    "unet_with_residuals",
    (*UNET.inputs, *(TensorSpec(name, "float32", shape) for name, shape in RESIDUALS.items())),
    UNET.outputs,
)
CONTROLNET = GraphSpec(
    "controlnet",
    (
        *UNET.inputs,
        TensorSpec("controlnet_cond", "float32", ("batch", 3, "image_height", "image_width")),
        TensorSpec("conditioning_scale", "float32", (1,)),
    ),
    tuple(
        TensorSpec(name.replace("additional_residual", "res_sample"), "float32", shape)
        for name, shape in RESIDUALS.items()
    ),
)


def controlnet(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """How light the picture is, times the scale."""
    light = feeds["controlnet_cond"].mean(axis=(1, 2, 3))[:, None, None, None] * feeds["conditioning_scale"]
    down = np.broadcast_to(light, feeds["sample"].shape).astype(np.float32)
    return {"down_block_res_sample_0": down, "mid_block_res_sample": 10 * down}


def unet_with_residuals(feeds: Mapping[str, Array]) -> dict[str, Array]:
    plain = conftest.unet({tensor.name: feeds[tensor.name] for tensor in UNET.inputs})
    return {"out_sample": plain["out_sample"] + 0.01 * feeds["mid_block_additional_residual"]}


@pytest.fixture
def pipeline(bundle_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """With two ControlNets."""
    monkeypatch.setitem(conftest.FUNCTIONS, "controlnet", controlnet)
    monkeypatch.setitem(conftest.FUNCTIONS, "unet_with_residuals", unet_with_residuals)
    bundle = Bundle.open(bundle_path)
    unet = bundle.manifest.graphs["unet"]
    variant = Variant(model=unet.model, spec=CONTROLLED, parity=unet.parity)
    bundle.manifest.graphs["unet"] = replace(unet, variants={"controlnet": variant})
    for name in ("controlnet", "controlnet_2"):
        bundle.manifest.graphs[name] = replace(unet, spec=CONTROLNET)
    return Pipeline(bundle)


def test_residuals_are_summed_and_scaled(pipeline: Pipeline, opened: Opened) -> None:
    run = pipeline.steps(
        "a car",
        control_images=[GREY, WHITE],
        controlnet_conditioning_scale=[0.5, 2],
        num_images=2,
        num_inference_steps=1,
        seed=0,
    )
    list(run)
    controls = [feeds for name, feeds in opened.calls if name == "controlnet"]
    assert [feeds["controlnet_cond"].shape for feeds in controls] == [(4, 3, 16, 16)] * 2
    assert [feeds["encoder_hidden_states"].shape for feeds in controls] == [(4, 77, WIDTH)] * 2
    (unet,) = [feeds for name, feeds in opened.calls if name == "unet_with_residuals"]
    np.testing.assert_array_equal(unet["sample"], controls[0]["sample"])
    np.testing.assert_allclose(unet["down_block_additional_residual_0"], 0.5 * 51 / 255 + 2, rtol=1e-6)
    np.testing.assert_allclose(unet["mid_block_additional_residual"], 10 * (0.5 * 51 / 255 + 2), rtol=1e-6)


def test_a_controlnet_has_a_say_between_start_and_end(pipeline: Pipeline, opened: Opened) -> None:
    told: dict[str, Any] = {"control_guidance_start": [0.25, 0.5], "control_guidance_end": [0.5, 0.75]}
    list(pipeline.steps("a car", control_images=[WHITE, GREY], num_inference_steps=4, guidance_scale=1, **told))
    added = [feeds["down_block_additional_residual_0"] for name, feeds in opened.calls if name == "unet_with_residuals"]
    np.testing.assert_allclose([residual.mean() for residual in added], [0, 1, 0.2, 0], rtol=1e-6)
    assert [name for name, _ in opened.calls].count("controlnet") == 4


def test_without_a_picture_the_plain_unet_draws(pipeline: Pipeline, opened: Opened) -> None:
    list(pipeline.steps("a car", num_inference_steps=1))
    assert {name for name, _ in opened.calls} == {"text_encoder", "unet"}
    assert sorted(opened.names) == ["text_encoder", "unet", "vae_decoder"]


def test_the_scale_is_in_the_parameters(pipeline: Pipeline) -> None:
    run = pipeline.steps("a car", control_images=[GREY, WHITE])
    assert run.parameters(0).controlnet_conditioning_scale == (1.0, 1.0)
    assert run.parameters(0).control_guidance_end == (1.0, 1.0)
    assert pipeline.steps("a car").parameters(0).controlnet_conditioning_scale is None
    assert Parameters.from_json(run.parameters(0).to_json()).controlnet_conditioning_scale == [1.0, 1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"control_images": [GREY]}, "1 control_images; this model has 2 ControlNets, wanted one for each or none"),
        (
            {"control_images": [GREY, GREY], "controlnet_conditioning_scale": [1.0] * 3},
            "3 values of controlnet_conditioning_scale; wanted one, or as many as control_images, 2",
        ),
        (
            {"control_images": [GREY, GREY], "control_guidance_start": 0.5, "control_guidance_end": [1, 0.5]},
            r"control_guidance_start 0\.5 and control_guidance_end 0\.5; wanted the first below the second, both in 0",
        ),
        ({"control_guidance_end": 0.5}, "control_guidance_end has no effect without control_images; leave it out"),
        ({"controlnet_conditioning_scale": 0.5}, "controlnet_conditioning_scale has no effect without control_images"),
        (
            {"control_images": [GREY, GREY], "controlnet_conditioning_scale": float("nan")},
            "controlnet_conditioning_scale nan; wanted a finite number, such as 1",
        ),
    ],
)
def test_what_cannot_be_used(pipeline: Pipeline, settings: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.steps("a car", **settings)


def test_a_model_without_controlnets(
    bundle_path: Path, opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    GREY.save(tmp_path / "a.png")
    options = f"--control-image {tmp_path}/a.png --controlnet-conditioning-scale 0.5 -o {tmp_path}/b.png"
    assert main(["generate", "a car", "--bundle", str(bundle_path), *options.split()]) == 2
    message = "1 control_images; this model has 0 ControlNets, wanted one for each or none"
    assert capsys.readouterr().err == f"edgediffusion: error: {message}\n"
    with (
        Bundle.open(bundle_path) as bundle,
        pytest.raises(UnknownName, match=r"unknown variant of unet 'controlnet'; known: $"),
    ):
        bundle.engine("unet", "controlnet")
