"""A ControlNet as a component of its own, and the variant of the UNet that takes what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx.external_data_helper import uses_external_data

from edgediffusion.engines.errors import ExportError
from edgediffusion.export.families.controlnet import residuals
from edgediffusion.export.options import Options
from edgediffusion.export.sources import gather
from edgediffusion.export.weights import read_header
from edgediffusion.export.write_bundle import export_bundle
from edgediffusion.runtime.manifest import Manifest


@pytest.fixture(scope="module")
def controlled(checkpoint: Path, controlnet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("controlled") / "bundle"
    export_bundle(str(checkpoint), folder, Options(controlnets=(str(controlnet),)))
    return folder


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


def test_the_variant_shares_the_weights_of_the_unet(controlled: Path) -> None:
    stored = read_header(controlled / "unet" / "diffusion_pytorch_model.safetensors")
    for name in ("model.onnx", "model.controlnet.onnx"):
        model = onnx.load(controlled / "unet" / name, load_external_data=False)
        assert {t.name for t in model.graph.initializer if uses_external_data(t)} == stored.keys()
        assert (controlled / "unet" / name).stat().st_size < 300_000


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
