"""Graphs of each opset that can be asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.registry import open_engine
from edgediffusion.export.families import FAMILIES, Sample
from edgediffusion.export.options import OPSETS, Options
from edgediffusion.export.sources import read_json
from edgediffusion.export.to_onnx import to_onnx
from edgediffusion.export.verify import references, relative_error
from edgediffusion.export.weights import load, read_header
from edgediffusion.export.write_bundle import export_bundle
from edgediffusion.runtime.manifest import Manifest

IR_VERSIONS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}  # https://onnx.ai/onnx/repo-docs/Versioning.html
SLOW = {19, 20, 21, 22}  # each is an export of the same network; 18 is that of the other tests


@pytest.mark.parametrize(
    "opset", [pytest.param(opset, marks=pytest.mark.slow) if opset in SLOW else opset for opset in OPSETS if opset > 18]
)
def test_unet(opset: int, checkpoint: Path, tmp_path: Path) -> None:
    network, config = FAMILIES["sd"]["unet"], read_json(checkpoint / "unet" / "config.json")
    module, spec = network.module(config).eval(), network.spec(config)
    weights = read_header(checkpoint / "unet" / "diffusion_pytorch_model.safetensors")
    module.load_state_dict({key: load(key, weight) for key, weight in weights.items()})
    rng, fixed = np.random.default_rng(0), spec.fixed({"batch": 2, "height": 5, "width": 6, "sequence_length": 77})
    shapes = {tensor.name: [d for d in tensor.shape if isinstance(d, int)] for tensor in fixed.inputs}
    sample = Sample("random", {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()})
    model = to_onnx(module, spec, sample, opset)
    assert [(imported.domain, imported.version) for imported in model.opset_import] == [("", opset)]
    assert model.ir_version == IR_VERSIONS[opset]
    assert {node.domain for node in model.graph.node} == {""}
    values = module.state_dict()
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].numpy(), tensor.name))
    onnx.checker.check_model(model, full_check=True)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (wanted,) = references(module, spec, [sample])
    with open_engine(path, spec, device="cpu") as engine:
        assert relative_error(engine(sample.feeds), wanted) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("options", [Options(opset=23, dtype={"": dtype}) for dtype in ("float16", "bfloat16")])
def test_whole_bundles(options: Options, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    manifest = export_bundle(checkpoints("sdxl"), tmp_path / "bundle", options)
    assert manifest == Manifest.read(tmp_path / "bundle")
    assert manifest.opset == options.opset
    for name, record in manifest.graphs.items():
        (imported,) = onnx.load(tmp_path / "bundle" / record.model, load_external_data=False).opset_import
        assert (imported.domain, imported.version) == ("", options.opset), name


@pytest.mark.parametrize("opset", [17, 24])
def test_other_opsets(opset: int) -> None:
    with pytest.raises(UsageError, match=f"--opset {opset}; wanted 18 to 23, 18 runs on most machines"):
        Options(opset=opset)
