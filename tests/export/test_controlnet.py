"""A ControlNet as a component of its own, and the variant of the UNet that takes what it says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import pytest
import torch
from onnx.external_data_helper import uses_external_data
from PIL import Image

from edgediffusion.engines.errors import BundleError, ExportError
from edgediffusion.engines.spec import GraphSpec, TensorSpec
from edgediffusion.export.against import checks_against
from edgediffusion.export.families import Sample
from edgediffusion.export.families.controlnet import residuals
from edgediffusion.export.golden import golden_sample
from edgediffusion.export.options import Options
from edgediffusion.export.reference import load_pipeline
from edgediffusion.export.sources import gather
from edgediffusion.export.to_onnx import quiet
from edgediffusion.export.weights import read_header
from edgediffusion.export.write_bundle import export_bundle
from edgediffusion.runtime import Bundle, Pipeline
from edgediffusion.runtime.golden import verify
from edgediffusion.runtime.manifest import MANIFEST, Manifest

from ..parity.test_pictures import MIN_PSNR, assert_same, psnr

EDGES = [Image.fromarray(np.random.default_rng(k).integers(0, 256, (64, 64, 3), np.uint8)) for k in range(2)]


@pytest.fixture(scope="module")
def controlled(checkpoint: Path, controlnets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with two ControlNets."""
    folder = tmp_path_factory.mktemp("controlled") / "bundle"
    export_bundle(checkpoint, folder, Options(controlnets=tuple(map(str, controlnets))))
    return folder


@pytest.mark.slow  # an export of its own
def test_component_and_variant_agree_with_torch(controlled: Path) -> None:
    graphs = Manifest.read(controlled).graphs
    variant = graphs["unet"].variants["controlnet"]
    assert variant.model == "unet/model.controlnet.onnx"
    assert 0 < variant.parity.error < 2e-5
    assert 0 < graphs["controlnet"].parity.error < 2e-5
    given = [tensor.name.replace("res_sample", "additional_residual") for tensor in graphs["controlnet"].spec.outputs]
    assert [tensor.name for tensor in variant.spec.inputs[3:]] == given
    assert [tensor.name for tensor in graphs["controlnet"].spec.inputs] == [
        "sample", "timestep", "encoder_hidden_states", "controlnet_cond", "conditioning_scale",
    ]  # fmt: skip


@pytest.mark.slow  # an export of its own
def test_the_variant_shares_the_weights_of_the_unet(controlled: Path) -> None:
    stored = read_header(controlled / "unet" / "diffusion_pytorch_model.safetensors")
    for name in ("model.onnx", "model.controlnet.onnx"):
        model = onnx.load(controlled / "unet" / name, load_external_data=False)
        assert {t.name for t in model.graph.initializer if uses_external_data(t)} == stored.keys()
        assert (controlled / "unet" / name).stat().st_size < 300_000


@pytest.mark.slow  # an export of its own
def test_every_graph_is_verified(controlled: Path, checkpoint: Path, controlnets: list[Path]) -> None:
    names = ["controlnet", "controlnet_2", "image_encoder", "text_encoder"]
    names += ["unet", "unet.controlnet", "vae_decoder", "vae_encoder"]
    nets = Options(controlnets=tuple(map(str, controlnets)))
    with Bundle.open(controlled) as bundle:
        for checks in (list(verify(bundle)), list(checks_against(bundle, str(checkpoint), nets))):
            assert sorted(check.component for check in checks) == names
            assert all(0 < check.error < 2e-5 for check in checks)
        assert "golden/unet.controlnet.safetensors" in bundle.manifest.files


@pytest.mark.slow  # an export of its own
def test_a_bundle_from_before_variants_had_golden_outputs(controlled: Path, tmp_path: Path) -> None:
    bundle = edited(controlled, tmp_path, lambda manifest: manifest["files"].pop("golden/unet.controlnet.safetensors"))
    with bundle, pytest.raises(BundleError, match=r"no golden outputs of unet\.controlnet; export it again"):
        list(verify(bundle))


@pytest.mark.slow  # an export of its own
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.parametrize("scales", [(1.0,), (0.7, 0.4)])
def test_picture_is_that_of_diffusers(
    controlled: Path, checkpoint: Path, controlnets: list[Path], tmp_path: Path, scales: tuple[float, ...]
) -> None:
    """With the first ControlNet alone the bundle is as if the other had not been exported."""
    drop = [] if len(scales) == 2 else ["controlnet_2"]
    bundle = edited(controlled, tmp_path, lambda manifest: [manifest["graphs"].pop(name) for name in drop])
    settings: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 5.0, "width": 64, "height": 64}
    scale, images = list(scales), EDGES[: len(scales)]
    kind: Any = diffusers.ControlNetModel
    pipeline: Any = diffusers.StableDiffusionControlNetPipeline
    with quiet():
        nets = [kind.from_pretrained(path, torch_dtype=torch.float32) for path in controlnets[: len(scales)]]
        theirs = pipeline(**load_pipeline(checkpoint).components, controlnet=nets)
        theirs.set_progress_bar_config(disable=True)
        generator = torch.Generator("cpu").manual_seed(3)
        told = {"image": images, "controlnet_conditioning_scale": scale, "generator": generator, **settings}
        (reference,) = theirs("a red apple", negative_prompt="blurry, dark", **told).images
    told = {"control_images": images, "seed": 3, "noise": "torch-cpu", **settings}
    with Pipeline(bundle) as ours:
        (picture,) = ours("a red apple", "blurry, dark", controlnet_conditioning_scale=scale, **told)
        (other,) = ours("a red apple", "blurry, dark", controlnet_conditioning_scale=[s - 0.1 for s in scale], **told)
    wanted = np.asarray(reference)
    assert_same(np.asarray(picture.image), wanted)
    assert psnr(np.asarray(other.image), wanted) < MIN_PSNR


def edited(bundle: Path, folder: Path, edit: Callable[[Any], object]) -> Bundle:
    """A copy of `bundle`, its manifest changed in place by `edit`."""
    shutil.copytree(bundle, folder / "bundle")
    manifest = json.loads((bundle / MANIFEST).read_text())
    edit(manifest)
    (folder / "bundle" / MANIFEST).write_text(json.dumps(manifest))
    return Bundle.open(folder / "bundle")


def test_golden_inputs_of_a_variant_fit_one_another() -> None:
    """Latents of 10 x 14 are cut to 5 x 7, and so what is half of them to 3 x 4, not to 2 x 3."""
    shapes = {
        "sample": (4, "height", "width"),
        "residual": (8, "height/2", "width/2"),
        "cond": (3, "8*height", "8*width"),
    }
    spec = GraphSpec(
        "unet", tuple(TensorSpec(name, "float32", ("batch", *shape)) for name, shape in shapes.items()), ()
    )
    whole = spec.fixed({"batch": 2, "height": 10, "width": 14, "sequence_length": 77})
    sample = Sample("", {tensor.name: np.zeros(tensor.shape, np.float32) for tensor in whole.inputs})  # type: ignore[arg-type]
    found = {name: array.shape for name, array in golden_sample(spec, [sample]).feeds.items()}
    assert found == {"sample": (1, 4, 5, 7), "residual": (1, 8, 3, 4), "cond": (1, 3, 40, 56)}


def test_residuals_are_as_many_and_as_large_as_the_blocks_of_sd1() -> None:
    found = residuals({"block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2}, "res_sample")
    assert [tensor.shape[1] for tensor in found] == [320] * 4 + [640] * 3 + [1280] * 6
    assert [tensor.shape[2] for tensor in found] == [
        *["height"] * 3, *["height/2"] * 3, *["height/4"] * 3, *["height/8"] * 4,
    ]  # fmt: skip


def test_more_controlnets_than_a_bundle_has(checkpoint: Path, controlnet: Path) -> None:
    with pytest.raises(ExportError, match="5 ControlNets; a bundle has up to 4"):
        gather(checkpoint, Options(controlnets=(str(controlnet),) * 5))


def test_a_place_without_a_controlnet(checkpoints: Callable[[str], Path]) -> None:
    with pytest.raises(ExportError, match="no controlnet there; wanted its folder, or a checkpoint that has one"):
        gather(checkpoints("sd"), Options(controlnets=(str(checkpoints("sd")),)))
