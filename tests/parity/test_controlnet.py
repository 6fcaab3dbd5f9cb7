"""Pictures of SDXL with ControlNets against diffusers' pipeline. UNet and ControlNets are torch's own, behind engines.

Those of SD are exported, see `tests/export/test_controlnet.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from edgediffusion.engines.fake import FakeEngine
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec
from edgediffusion.export.reference import load_pipeline
from edgediffusion.export.to_onnx import quiet
from edgediffusion.runtime import Bundle, Pipeline
from edgediffusion.runtime.manifest import Variant

from .test_pictures import MIN_PSNR, assert_same, psnr

EDGES = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (64, 64, 3), np.uint8)) for k in range(2)]
Picture = NDArray[np.uint8]
Draw = Callable[..., tuple[Picture, Picture]]
Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]


def make_controlnet(unet: Any, seed: int) -> Any:
    """For `unet`, and with a say: the last layers of a fresh one are zeros."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        kind: Any = diffusers.ControlNetModel
        controlnet = kind.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
        for block in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
            block.weight.normal_(std=0.1)
        controlnet.controlnet_cond_embedding.conv_out.weight.normal_(std=0.5)
    return controlnet.eval()


def torch_inputs(feeds: Mapping[str, Array]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments that UNet and ControlNet share, and the others."""
    given = {name: torch.from_numpy(np.array(value)) for name, value in feeds.items()}
    shared: dict[str, Any] = {name: given.pop(name) for name in ("sample", "timestep", "encoder_hidden_states")}
    added = {name: given.pop(name) for name in ("text_embeds", "time_ids") if name in given}
    return shared | {"added_cond_kwargs": added}, given


def run_controlnet(controlnet: Any) -> Function:
    @torch.no_grad()
    def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        shared, own = torch_inputs(feeds)
        output = controlnet(**shared, **own)
        down = {f"down_block_res_sample_{k}": x.numpy() for k, x in enumerate(output.down_block_res_samples)}
        return {**down, "mid_block_res_sample": output.mid_block_res_sample.numpy()}

    return run


def run_unet(unet: Any) -> Function:
    @torch.no_grad()
    def run(feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        shared, residuals = torch_inputs(feeds)
        middle = residuals.pop("mid_block_additional_residual")
        down = tuple(residuals[f"down_block_additional_residual_{k}"] for k in range(len(residuals)))
        output = unet(**shared, down_block_additional_residuals=down, mid_block_additional_residual=middle)
        return {"out_sample": output.sample.numpy()}

    return run


@pytest.fixture
def draw(checkpoints: Callable[[str], Path], bundles: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Draws a red apple with a scale for each ControlNet: by ours, which may be told others, and by diffusers."""

    def draw(*scales: float, told: tuple[float, ...] = (), **parts: list[float]) -> tuple[Picture, Picture]:
        theirs = load_pipeline(checkpoints("sdxl"))
        controlnets = [make_controlnet(theirs.unet, seed) for seed in range(len(scales))]
        settings: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 5.0, "width": 64, "height": 64}
        with controlled(bundles("sdxl"), theirs.unet, controlnets, monkeypatch) as drawing:
            (ours,) = drawing(
                "a red apple",
                "blurry, dark",
                seed=3,
                noise="torch-cpu",
                control_images=EDGES[: len(scales)],
                controlnet_conditioning_scale=told or scales,
                **parts,  # type: ignore[arg-type]
                **settings,
            )
        pipeline: Any = diffusers.StableDiffusionXLControlNetPipeline
        theirs = pipeline(**theirs.components, controlnet=controlnets)
        theirs.set_progress_bar_config(disable=True)
        with quiet():
            (reference,) = theirs(
                "a red apple",
                negative_prompt="blurry, dark",
                generator=torch.Generator("cpu").manual_seed(3),
                image=EDGES[: len(scales)],
                controlnet_conditioning_scale=list(scales),
                **parts,
                **settings,
            ).images
        return np.asarray(ours.image), np.asarray(reference)

    return draw


def controlled(bundle: Path, unet: Any, controlnets: list[Any], monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The bundle as if it had been exported with `controlnets`."""
    opened = Bundle.open(bundle)
    record = opened.manifest.graphs["unet"]
    names = [f"down_block_#_{k}" for k in range(len(controlnets[0].controlnet_down_blocks))] + ["mid_block_#"]
    cond = TensorSpec("controlnet_cond", "float32", ("batch", 3, "image_height", "image_width"))
    scale = TensorSpec("conditioning_scale", "float32", (1,))
    residuals = _free([name.replace("#", "additional_residual") for name in names])
    spec = GraphSpec("unet", (*record.spec.inputs, *residuals), record.spec.outputs)
    variant = Variant(model="unet/model.controlnet.onnx", spec=spec, parity=record.parity)
    opened.manifest.graphs["unet"] = replace(record, variants={"controlnet": variant})
    engines = {"unet": FakeEngine(spec, run_unet(unet))}
    samples = _free([name.replace("#", "res_sample") for name in names])
    for k, controlnet in enumerate(controlnets):
        spec = GraphSpec("controlnet", (*record.spec.inputs, cond, scale), samples)
        name = f"controlnet_{k + 1}" if k else "controlnet"
        opened.manifest.graphs[name] = replace(record, spec=spec)
        engines[name] = FakeEngine(spec, run_controlnet(controlnet))
    real = opened.engine
    monkeypatch.setattr(opened, "engine", lambda name, variant=None: engines.get(name) or real(name, variant))
    return Pipeline(opened)


def _free(names: list[str]) -> tuple[TensorSpec, ...]:
    """Tensors whose channels and sizes are left to torch."""
    return tuple(TensorSpec(name, "float32", ("batch", *(f"{name}_{axis}" for axis in "chw"))) for name in names)


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.parametrize("scales", [(1.0,), (0.7, 0.4)])
def test_picture_is_that_of_diffusers(draw: Draw, scales: tuple[float, ...]) -> None:
    assert_same(*draw(*scales))


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_each_has_a_say_in_its_part_of_the_steps(draw: Draw) -> None:
    assert_same(*draw(0.7, 0.4, control_guidance_start=[0.2, 0.4], control_guidance_end=[0.6, 0.8]))


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
@pytest.mark.slow
def test_the_comparison_can_fail(draw: Draw) -> None:
    assert psnr(*draw(1.0, told=(0.9,))) < MIN_PSNR
