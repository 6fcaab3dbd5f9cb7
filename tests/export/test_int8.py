"""`--weights int8`: what is multiplied with in 8 bits, in every graph that has these weights."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx.external_data_helper import uses_external_data

from edgediffusion.engines.errors import ExportError, UsageError
from edgediffusion.export.families import FAMILIES
from edgediffusion.export.options import Options
from edgediffusion.export.precision import INT8_TOLERANCE
from edgediffusion.export.sources import gather
from edgediffusion.export.to_diffusers import to_diffusers
from edgediffusion.export.weights import SCALE, read_header
from edgediffusion.export.write_bundle import export_bundle, weights_bytes
from edgediffusion.runtime.manifest import Manifest

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def int8(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A bundle in 8 bits, and what its export reported."""
    folder, lines = tmp_path_factory.mktemp("int8") / "bundle", list[str]()
    export_bundle(checkpoint, folder, Options(weights="int8"), lines.append)
    return folder, lines


@pytest.mark.slow  # an export of its own
def test_weights_that_are_multiplied_with(int8: tuple[Path, list[str]]) -> None:
    for name, record in Manifest.read(int8[0]).graphs.items():
        assert (record.dtype, record.weights_dtype) == ("float32", "float16, float32, int8")
        stored = read_header(int8[0] / record.weights)
        for key in [key for key, tensor in stored.items() if tensor.dtype == "I8"]:
            assert stored[key + SCALE].shape == stored[key].shape[:1]
        kept = {key for key, tensor in stored.items() if len(tensor.shape) > 1 and tensor.dtype != "I8"}
        assert all("embedding" in key for key in kept), name


@pytest.mark.slow  # an export of its own
@pytest.mark.parametrize("weights", [None, "int8"])
def test_the_disk_that_weights_take_is_known_before(
    weights: str | None, int8: tuple[Path, list[str]], bundle: Path, checkpoint: Path
) -> None:
    folder = bundle if weights is None else int8[0]
    files = [folder / record.weights for record in Manifest.read(folder).graphs.values()]
    stored = sum(tensor.length for file in files for tensor in read_header(file).values())
    options = Options(weights=weights)
    parts = {name: part for name in FAMILIES["sd"] if (part := gather(checkpoint, options).component((name,)))}
    parts["vae_decoder"] = parts["vae_encoder"] = gather(checkpoint, options).parts["vae"]
    assert stored <= weights_bytes(parts, options) <= 1.05 * stored


@pytest.mark.slow  # an export of its own
def test_the_loss_is_measured(int8: tuple[Path, list[str]]) -> None:
    graphs = Manifest.read(int8[0]).graphs
    for record in graphs.values():
        assert 1e-4 < record.parity.error < record.parity.tolerance == INT8_TOLERANCE
    reported = [line for line in int8[1] if "(tolerance 0.15; " in line]
    assert [line.split(":")[0] for line in reported] == list(graphs)


@pytest.mark.slow
def test_a_variant_has_the_same_weights(checkpoint: Path, controlnet: Path, tmp_path: Path) -> None:
    export_bundle(checkpoint, tmp_path / "bundle", Options(weights="int8", controlnets=(str(controlnet),)))
    unet = Manifest.read(tmp_path / "bundle").graphs["unet"]
    assert 1e-4 < unet.variants["controlnet"].parity.error < INT8_TOLERANCE
    stored = read_header(tmp_path / "bundle" / UNET_WEIGHTS)
    for name in ("model.onnx", "model.controlnet.onnx"):
        graph = onnx.load(tmp_path / "bundle" / "unet" / name, load_external_data=False).graph
        assert {tensor.name for tensor in graph.initializer if uses_external_data(tensor)} == stored.keys()
        scaled = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        assert scaled == {key for key, tensor in stored.items() if tensor.dtype == "I8"}


@pytest.mark.slow  # an export of its own
def test_no_way_back(int8: tuple[Path, list[str]], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r": \d+ weights are integers, first \S+; export it without --weights int8$"):
        to_diffusers(int8[0], tmp_path / "out")
    with pytest.raises(ExportError, match=r" has dtype I8; known: BF16, F16, F32; export the checkpoint that it was"):
        export_bundle(int8[0], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_float32_only() -> None:
    with pytest.raises(UsageError, match=r"--weights int8 is for graphs in fp32, got --dtype float16; leave one of"):
        Options(dtype={"unet": "float16"}, weights="int8")
