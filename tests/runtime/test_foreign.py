"""Folders as optimum exports them: no manifest, weights inside of the graphs, a timestep without an axis."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgediffusion.engines.errors import BundleError, GraphMismatch
from edgediffusion.engines.fake import FakeEngine
from edgediffusion.engines.onnx_file import OnnxFile
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec
from edgediffusion.runtime import foreign
from edgediffusion.runtime.bundle import Bundle
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.foreign import adapt
from edgediffusion.runtime.manifest import MANIFEST
from edgediffusion.runtime.pipeline import Pipeline

from .conftest import SPECS, Opened


def as_optimum(spec: GraphSpec, floats: str, timestep: str, ids: str) -> GraphSpec:
    def convert(tensor: TensorSpec) -> TensorSpec:
        if tensor.name == "timestep":
            return TensorSpec("timestep", timestep, ())
        return replace(tensor, dtype=ids if tensor.name == "input_ids" else floats)

    return GraphSpec(spec.name, tuple(map(convert, spec.inputs)), tuple(map(convert, spec.outputs)))


@pytest.fixture
def folder(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The bundle as optimum would have written it. Graphs are no files here, see tests/engines/test_onnx_file.py."""
    (bundle_path / MANIFEST).unlink()
    for path in bundle_path.glob("*/*.safetensors"):
        path.unlink()
    (bundle_path / "model_index.json").write_text(json.dumps({"_class_name": "ORTStableDiffusionPipeline"}))

    def read(path: Path) -> OnnxFile:
        return OnnxFile(18, as_optimum(SPECS[path.parent.name], "float32", "float32", "int64"), (), 0)

    monkeypatch.setattr(foreign, "read_onnx", read)
    return bundle_path


def test_it_draws(folder: Path, opened: Opened) -> None:
    with Pipeline.load(folder) as pipeline:
        (image,) = pipeline("red apple", seed=1, num_inference_steps=2, width=16, height=16)
    assert np.asarray(image.image).std() > 0
    timesteps = [feeds["timestep"] for name, feeds in opened.calls if name == "unet"]
    assert [t.shape for t in timesteps] == [()] * 2


def test_its_manifest(folder: Path) -> None:
    manifest = Bundle.open(folder).manifest
    assert manifest.family == "sd"
    assert manifest.graphs.keys() == SPECS.keys()
    assert manifest.graphs["unet"].files == ("unet/model.onnx", "unet/model.onnx")
    assert "scheduler/scheduler_config.json" in manifest.files
    assert np.isnan(manifest.graphs["unet"].parity.error)


def test_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "written with another tool, such as optimum: no manifest and no digests" in out
    assert "unet float32 sample float32 (sample.0, 4, sample.2, sample.3)" in out
    assert "unknown not compared with torch" in out
    assert main(["inspect", "--json", str(folder)]) == 0
    graphs = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["graphs"]
    assert graphs["unet"]["parity"] == {"error": None, "tolerance": None, "worst": "not compared with torch"}


def test_free_dimensions_need_not_agree(folder: Path) -> None:
    """optimum declares some that do not."""
    outputs = Bundle.open(folder).manifest.graphs["unet"].spec.outputs
    assert outputs[0].shape == ("out_sample.0", 4, "out_sample.2", "out_sample.3")


def test_a_missing_graph(folder: Path) -> None:
    (folder / "vae_encoder/model.onnx").unlink()
    with pytest.raises(BundleError, match="no graph of vae_encoder in the manifest"):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ('{"_class_name": "ORTFluxPipeline"}', "pipeline class 'FluxPipeline', known: .*StableDiffusionPipeline"),
        ("{}", r"cannot be read \(KeyError\('_class_name'\)\); export the model again"),
        ("[", "cannot be read"),
    ],
)
def test_another_kind_of_model(folder: Path, index: str, message: str) -> None:
    (folder / "model_index.json").write_text(index)
    with pytest.raises(BundleError, match=message):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("floats", "timestep", "ids"), [("float32", "int64", "int32"), ("float16", "float16", "int64")]
)
def test_other_dtypes(floats: str, timestep: str, ids: str) -> None:
    seen: dict[str, Array] = {}

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        seen.update(feeds)
        return {"out_sample": feeds["sample"]}

    spec = as_optimum(SPECS["unet"], floats, timestep, ids)
    sample = np.ones((1, 4, 2, 2), np.float32)
    with adapt(FakeEngine(spec, run)) as engine:
        bound = engine.bind({"encoder_hidden_states": np.zeros((1, 77, 8), np.float32)})
        outputs = bound({"sample": sample, "timestep": np.array([500.6], np.float32)})
    assert seen["timestep"].dtype == timestep
    assert seen["timestep"].shape == ()
    assert abs(float(seen["timestep"]) - 500.6) < 0.5
    assert seen["sample"].dtype == floats
    assert outputs["out_sample"].dtype == np.float32
    assert np.array_equal(outputs["out_sample"], sample)


def test_ids() -> None:
    spec = as_optimum(SPECS["text_encoder"], "float32", "float32", "int32")
    engine = adapt(FakeEngine(spec, lambda feeds: {"last_hidden_state": np.zeros((1, 77, 8), np.float32)}))
    assert engine({"input_ids": np.zeros((1, 77), np.int64)})["last_hidden_state"].shape == (1, 77, 8)
    with pytest.raises(GraphMismatch, match="unknown input ids; known: input_ids"):
        engine({"ids": np.zeros(1), "input_ids": np.zeros((1, 77), np.int64)})


def test_graphs_of_ours_are_left_alone() -> None:
    engine = FakeEngine(SPECS["unet"], lambda feeds: {})
    assert adapt(engine) is engine
