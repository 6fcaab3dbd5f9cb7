"""A whole export of a tiny checkpoint, and what stays behind when it fails."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import uses_external_data
from safetensors import safe_open

from edgediffusion.engines.errors import ExportError, UsageError
from edgediffusion.export import component, stage, verify, write_bundle
from edgediffusion.export.component import Exported
from edgediffusion.export.options import Options
from edgediffusion.export.weights import read_header
from edgediffusion.export.write_bundle import export_bundle
from edgediffusion.runtime.manifest import MANIFEST, Manifest


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Components are exported here, where a test can put something in the way; `bundle` was made with children."""
    monkeypatch.setattr(write_bundle, "in_child", lambda what, function: function())


GRAPHS = ("image_encoder", "text_encoder", "unet", "vae_decoder", "vae_encoder")


def graph(bundle: Path, name: str) -> onnx.ModelProto:
    return onnx.load(bundle / name / "model.onnx", load_external_data=False)


def places(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def test_layout(bundle: Path) -> None:
    files = {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
    diffusion = ("unet", "vae_decoder", "vae_encoder")
    assert files == {
        MANIFEST,
        "README.md",
        "model_index.json",
        "scheduler/scheduler_config.json",
        *(f"tokenizer/{name}" for name in ("merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json")),
        *(f"golden/{name}.safetensors" for name in GRAPHS),
        *(f"{name}/{file}" for name in GRAPHS for file in ("config.json", "model.onnx", "model.cpu.onnx")),
        *(f"{name}/diffusion_pytorch_model.safetensors" for name in diffusion),
        *(f"{name}/model.safetensors" for name in ("text_encoder", "image_encoder")),
    }


def test_manifest_describes_every_file(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    files = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file()}
    assert manifest.files.keys() == files.keys() - {MANIFEST}
    for name, record in manifest.files.items():
        content = files[name].read_bytes()
        assert (record.bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert manifest.license == "apache-2.0"
    assert {(record.dtype, record.weights_dtype) for record in manifest.graphs.values()} == {("float32", "float16")}
    assert manifest.source_sha256.keys() == {
        "text_encoder/model.safetensors",
        "image_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }


def test_manifest_holds_the_parity_of_each_graph(bundle: Path) -> None:
    graphs = Manifest.read(bundle).graphs
    assert set(graphs) == set(GRAPHS)
    for record in graphs.values():
        assert 0 < record.parity.error < 2e-5
        assert record.parity.tolerance == verify.TOLERANCE
        assert record.parity.worst


@pytest.mark.parametrize("name", GRAPHS)
def test_every_weight_is_external_and_nothing_is_left_over(bundle: Path, name: str) -> None:
    model = graph(bundle, name)
    external = {t.name: places(t) for t in model.graph.initializer if uses_external_data(t)}
    (weights,) = (bundle / name).glob("*.safetensors")
    stored = read_header(weights)
    assert external.keys() == stored.keys()
    for key, place in external.items():
        assert place == {"location": weights.name, "offset": str(stored[key].offset), "length": str(stored[key].length)}
    inline = sum(len(t.SerializeToString()) for t in model.graph.initializer if not uses_external_data(t))
    assert inline < 30_000  # 77 x 77 numbers are the mask of the text encoder


@pytest.mark.parametrize("name", GRAPHS)
def test_half_precision_stays_half_and_is_cast_once(bundle: Path, name: str) -> None:
    model = graph(bundle, name)
    external = [t for t in model.graph.initializer if uses_external_data(t)]
    assert {t.data_type for t in external} == {onnx.TensorProto.FLOAT16}
    users = [node for node in model.graph.node if any(t.name in node.input for t in external)]
    assert {node.op_type for node in users} == {"Cast"}
    assert len(users) == len(external)


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_are_portable(bundle: Path, name: str) -> None:
    path = bundle / name / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    model = graph(bundle, name)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert model.ir_version <= 10
    assert not model.functions
    assert not {node.op_type for node in model.graph.node} & {"SequenceAt", "SplitToSequence", "CastLike", "Identity"}
    assert path.stat().st_size < 200_000


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_have_the_inputs_and_outputs_of_the_manifest(bundle: Path, name: str) -> None:
    model, spec = graph(bundle, name), Manifest.read(bundle).graphs[name].spec
    for values, tensors in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        shapes = [
            (value.name, tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim))
            for value in values
        ]
        assert shapes == [(tensor.name, tensor.shape) for tensor in tensors]


def test_nothing_of_this_machine_is_in_a_graph(bundle: Path) -> None:
    for name in GRAPHS:
        content = (bundle / name / "model.onnx").read_bytes()
        assert b".py" not in content
        assert str(Path.cwd()).encode() not in content


def test_vae_is_split_and_not_doubled(bundle: Path, checkpoint: Path) -> None:
    halves = [read_header(bundle / name / "diffusion_pytorch_model.safetensors") for name in GRAPHS[3:]]
    assert not halves[0].keys() & halves[1].keys()
    assert (
        halves[0].keys() | halves[1].keys()
        == read_header(checkpoint / "vae" / "diffusion_pytorch_model.safetensors").keys()
    )


def test_text_encoder_keys_are_those_of_every_original_checkpoint(bundle: Path) -> None:
    with safe_open(bundle / "text_encoder" / "model.safetensors", framework="np") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}


@pytest.mark.slow
def test_a_bundle_is_a_checkpoint_and_its_export_is_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    export_bundle(bundle, tmp_path / "again")
    for name, record in Manifest.read(bundle).files.items():
        assert (tmp_path / "again" / name).read_bytes() == (bundle / name).read_bytes(), name
        assert Manifest.read(tmp_path / "again").files[name] == record


def test_other_tools_open_the_components(bundle: Path) -> None:
    import torch
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    from edgediffusion.export.to_onnx import quiet

    diffusion: Any = UNet2DConditionModel
    transformer: Any = CLIPTextModel

    with quiet():
        unet = diffusion.from_pretrained(bundle, subfolder="unet")
        text_encoder, report = transformer.from_pretrained(bundle / "text_encoder", output_loading_info=True)
    assert unet.dtype == torch.float32
    assert text_encoder.dtype == torch.float16
    assert not any(report.values()), report


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def fill_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (interrupt, KeyboardInterrupt, "^$"),
        (fill_disk, UsageError, r"out: cannot be written \(.*No space left on device\)"),
    ],
)
def test_nothing_stays_behind(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Callable[..., None],
    error: type[BaseException],
    message: str,
    exists: bool,
) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    monkeypatch.setattr("edgediffusion.export.component.to_onnx", failure)
    with pytest.raises(error, match=message):
        export_bundle(checkpoint, out)
    assert list(tmp_path.rglob("*")) == ([out] if exists else [])


def test_a_bundle_that_misses_its_tolerance_is_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(component, "TOLERANCE", 1e-9)
    with pytest.raises(ExportError, match=r"text_encoder: off by .*e-07 of torch's largest output \(prompts of"):
        export_bundle(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_out_is_refused_before_any_work(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "export_component", interrupt)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match=r"taken: already exists; name a new folder, or remove it first"):
        export_bundle(checkpoint, taken)
    with pytest.raises(UsageError, match=r"thesis.txt: already exists"):
        export_bundle(checkpoint, taken / "thesis.txt")
    with pytest.raises(UsageError, match=r"no/out: cannot be written \(.*No such file or directory"):
        export_bundle(checkpoint, tmp_path / "no" / "out")
    assert (taken / "thesis.txt").read_text() == "precious"


def test_stages_are_reported_and_an_optional_component_may_be_missing(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the components of a finished bundle in place of their export, which takes a while."""
    graphs = Manifest.read(bundle).graphs

    def done(_: object, component: Any, *rest: Any) -> Exported:
        shutil.copytree(bundle / component.folder, rest[-2] / component.folder)
        (rest[-2] / "golden").mkdir(exist_ok=True)
        shutil.copyfile(*(root / "golden" / f"{component.folder}.safetensors" for root in (bundle, rest[-2])))
        return Exported(graphs[component.folder], [])

    source = tmp_path / "source"
    shutil.copytree(checkpoint, source, ignore=shutil.ignore_patterns("image_encoder", "README.md"))
    monkeypatch.setattr(stage, "export_component", done)
    lines: list[str] = []
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    manifest = export_bundle(source, tmp_path / "out", report=lines.append)
    assert manifest == Manifest.read(tmp_path / "out")
    assert manifest.graphs.keys() == set(GRAPHS) - {"image_encoder"}
    assert (manifest.source, manifest.license) == ("source", "unknown")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["image_encoder"] == [None, None]
    assert index["vae"] == ["diffusers", "AutoencoderKL"]
    assert [line.split(":")[0] for line in lines[::2]] == [
        "text_encoder", "vae_encoder", "vae_decoder", "unet", "tokenizer, scheduler and manifest",
    ]  # fmt: skip
    *parities, previews = lines[1::2]
    assert all("agrees with torch to" in line for line in parities)
    assert previews.startswith("previews: a linear projection of the latents explains ")
    assert export_bundle(source, tmp_path / "licensed", Options(license="CC0-1.0")).license == "CC0-1.0"


def test_a_component_that_is_missing(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "source", ignore=shutil.ignore_patterns("text_encoder"))
    with pytest.raises(ExportError, match=r"source: text_encoder/config.json is missing"):
        export_bundle(tmp_path / "source", tmp_path / "out")


@pytest.mark.slow
def test_resume_keeps_what_is_whole_and_of_the_same_weights(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs, made = Manifest.read(bundle).graphs, list[str]()

    def done(_: object, component: Any, network: object, seen: Any, target: Path, options: Options) -> Exported:
        made.append(component.folder)
        if len(made) == 3:
            raise KeyboardInterrupt
        assert set(seen) <= {"text_encoder", "vae_encoder", "vae_decoder", "unet"}
        shutil.copytree(bundle / component.folder, target / component.folder)
        (target / "golden").mkdir(exist_ok=True)
        shutil.copyfile(*(root / "golden" / f"{component.folder}.safetensors" for root in (bundle, target)))
        return Exported(graphs[component.folder], [{"x": np.ones(3)}])

    monkeypatch.setattr(stage, "export_component", done)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export_bundle(checkpoint, out, Options(resume=True))
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    (tmp_path / ".out.partial" / "bundle" / "vae_encoder" / "model.onnx").write_bytes(b"cut short")
    export_bundle(checkpoint, out, Options(resume=True))
    assert made == ["text_encoder", "vae_encoder", "vae_decoder", "vae_encoder", "vae_decoder", "unet", "image_encoder"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    files = Manifest.read(out).files
    for name, record in Manifest.read(bundle).files.items():
        if name.split("/")[0] in (*GRAPHS, "golden"):
            assert files[name] == record


def test_a_disk_that_is_too_full(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(UsageError, match=r"out: the bundle takes about 32 MiB, 1 MiB are free there; free some, or na"):
        export_bundle(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())
