from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgediffusion.engines.errors import BundleError, UnknownName, UsageError
from edgediffusion.runtime import bundle as bundle_module
from edgediffusion.runtime.bundle import Bundle
from edgediffusion.runtime.manifest import MANIFEST, SCHEMA, Dialect, Manifest, Variant

from .conftest import Opened

UNET = "unet/diffusion_pytorch_model.safetensors"


def edit_manifest(path: Path, **changes: Any) -> None:
    record = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps(record | changes))


def test_engines_open_on_demand_and_once(bundle_path: Path, opened: Opened) -> None:
    with Bundle.open(bundle_path) as bundle:
        assert opened.names == []
        unet = bundle.engine("unet")
        bundle.prefetch("unet", "vae_decoder")
        assert bundle.engine("unet") is unet
        bundle.engine("vae_decoder")
        assert opened.names == ["unet", "vae_decoder"]


def test_a_released_engine_is_closed_and_opens_again(bundle_path: Path, opened: Opened) -> None:
    with Bundle.open(bundle_path) as bundle:
        first = bundle.engine("unet")
        bundle.release("unet", "vae_decoder")
        with pytest.raises(UsageError, match="closed"):
            first({})
        assert bundle.engine("unet") is not first
        last = bundle.engine("unet")
    with pytest.raises(UsageError, match="closed"):
        last({})


def test_a_closed_bundle(bundle_path: Path, opened: Opened) -> None:
    bundle = Bundle.open(bundle_path)
    bundle.close()
    bundle.close()
    with pytest.raises(UsageError, match=f"{bundle_path}: this bundle was closed; open it again"):
        bundle.engine("unet")


def test_an_unknown_component(bundle_path: Path, opened: Opened) -> None:
    with (
        Bundle.open(bundle_path) as bundle,
        pytest.raises(UnknownName, match="unknown component 'safety'; known: text_encoder, unet, vae_decoder, vae_enc"),
    ):
        bundle.engine("safety")


def test_an_error_of_the_backend_comes_through(bundle_path: Path) -> None:
    with (
        Bundle.open(bundle_path, backend="abacus") as bundle,
        pytest.raises(UnknownName, match="unknown backend 'abacus'; known: "),
    ):
        bundle.engine("unet")


@pytest.mark.parametrize("there", [False, True])
def test_no_bundle(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "nothing"
    if there:
        path.mkdir()
    with pytest.raises(BundleError, match=f"{path}: no bundle here, {MANIFEST} is missing; write one with: edgediff"):
        Bundle.open(path)


@pytest.mark.parametrize(
    "name", [UNET, "unet/model.onnx", "tokenizer/tokenizer.json", "scheduler/scheduler_config.json"]
)
def test_a_missing_file(bundle_path: Path, name: str) -> None:
    (bundle_path / name).unlink()
    with pytest.raises(BundleError, match=f"{bundle_path / name}: missing; copy or export the bundle again"):
        Bundle.open(bundle_path)


@pytest.mark.parametrize(("content", "kind"), [(b"weights", "truncated, 7"), (b"weights of a unet", "altered, 17")])
def test_a_file_of_another_size(bundle_path: Path, content: bytes, kind: str) -> None:
    (bundle_path / UNET).write_bytes(content)
    with pytest.raises(
        BundleError, match=f"{bundle_path / UNET}: {kind} bytes, expected 15; copy or export the bundle"
    ):
        Bundle.open(bundle_path)


@pytest.mark.parametrize("name", [UNET, "unet/model.onnx"])
def test_altered_weights_or_graph(bundle_path: Path, opened: Opened, name: str) -> None:
    path = bundle_path / name
    content = path.read_bytes()
    path.write_bytes(content[::-1])
    with Bundle.open(bundle_path) as bundle:
        with pytest.raises(
            BundleError, match=f"{path}: altered, SHA-256 [0-9a-f]{{64}}, expected [0-9a-f]{{64}}; copy"
        ):
            bundle.engine("unet")
        path.write_bytes(content)
        assert bundle.engine("unet").spec.name == "unet"


def test_all_blocks_that_used_altered_weights_end_with_it(bundle_path: Path, opened: Opened) -> None:
    path = bundle_path / UNET
    content = path.read_bytes()
    path.write_bytes(content[::-1])
    with Bundle.open(bundle_path) as bundle:
        blocks = [bundle.using("unet"), bundle.using("vae_decoder"), bundle.using("unet")]
        for block in blocks:
            block.__enter__()
        bundle.engine("unet")
        bundle.engine("vae_decoder")
        for block in blocks:  # of other threads, say
            with pytest.raises(BundleError, match="altered"):
                block.__exit__(None, None, None)
        path.write_bytes(content)
        with bundle.using("unet"):
            bundle.engine("unet")
        assert bundle._used == {}
        bundle.engine("unet")
        assert bundle._used == {}


def test_nothing_is_built_of_altered_weights(bundle_path: Path, opened: Opened) -> None:
    """An engine in the store would be taken for that of the right ones."""
    path = bundle_path / UNET
    path.write_bytes(path.read_bytes()[::-1])
    with Bundle.open(bundle_path, backend="tensorrt") as bundle:
        bundle.prefetch("unet")
        with pytest.raises(BundleError, match="altered"):
            bundle.engine("unet")
    assert opened.names == []


def test_altered_weights_are_the_reason_why_a_graph_cannot_be_opened(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **keywords: object) -> None:
        raise BundleError("cannot load it")

    monkeypatch.setattr("edgediffusion.runtime.bundle.open_engine", fails)
    path = bundle_path / UNET
    with Bundle.open(bundle_path) as bundle, bundle.using("unet"), pytest.raises(BundleError, match="cannot load it"):
        bundle.engine("unet")
    path.write_bytes(path.read_bytes()[::-1])
    with Bundle.open(bundle_path) as bundle, bundle.using("unet"), pytest.raises(BundleError, match="altered"):
        bundle.engine("unet")


def test_an_altered_small_file(bundle_path: Path) -> None:
    path = bundle_path / "scheduler/scheduler_config.json"
    path.write_bytes(path.read_bytes().replace(b"Euler", b"eULER"))
    with pytest.raises(BundleError, match=f"{path}: altered, SHA-256"):
        Bundle.open(bundle_path)


def test_an_altered_file_that_is_not_used_is_not_read(bundle_path: Path, opened: Opened) -> None:
    path = bundle_path / "vae_encoder/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[::-1])
    with Bundle.open(bundle_path) as bundle:
        bundle.engine("unet")


def test_a_newer_schema(bundle_path: Path) -> None:
    edit_manifest(bundle_path, schema=SCHEMA + 1)
    with pytest.raises(
        BundleError, match=f"schema {SCHEMA + 1}, this version reads up to {SCHEMA}; pip install --upgr"
    ):
        Bundle.open(bundle_path)


def test_a_newer_family(bundle_path: Path) -> None:
    edit_manifest(bundle_path, family="sd9")
    with pytest.raises(BundleError, match=r"family 'sd9', known: lcm, sd, .*; pip install --upgrade edgediffusion"):
        Bundle.open(bundle_path)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../secret", "unet/../../secret", "C:/secret", "C:secret", "//host/share", "unet\\..\\..\\s"],
)
def test_a_path_that_leaves_the_bundle(bundle_path: Path, name: str) -> None:
    edit_manifest(bundle_path, files={name: {"bytes": 1, "sha256": ""}})
    with pytest.raises(BundleError, match="which is outside the bundle; do not use this bundle") as error:
        Bundle.open(bundle_path)
    assert repr(name) in str(error.value)


def test_a_path_that_cannot_be(bundle_path: Path) -> None:
    edit_manifest(bundle_path, files={"unet/\0": {"bytes": 1, "sha256": ""}})
    with pytest.raises(BundleError, match="missing; copy or export"):
        Bundle.open(bundle_path)


def test_a_component_without_a_graph(bundle_path: Path) -> None:
    graphs = json.loads((bundle_path / MANIFEST).read_text())["graphs"]
    del graphs["unet"], graphs["vae_encoder"]
    edit_manifest(bundle_path, graphs=graphs)
    with pytest.raises(
        BundleError, match=f"{bundle_path}: no graph of unet, vae_encoder in the manifest; copy or export"
    ):
        Bundle.open(bundle_path)


def test_a_graph_without_a_digest(bundle_path: Path) -> None:
    files = json.loads((bundle_path / MANIFEST).read_text())["files"]
    del files[UNET]
    edit_manifest(bundle_path, files=files)
    with pytest.raises(BundleError, match=f"{UNET} has no size and digest in the manifest; copy or export the bundle"):
        Bundle.open(bundle_path)


def test_configs(bundle_path: Path) -> None:
    with Bundle.open(bundle_path) as bundle:
        assert bundle.config("unet/config.json")["in_channels"] == 4
        with pytest.raises(
            BundleError, match=r"image_encoder/config\.json is not in the manifest; copy or export the bun"
        ):
            bundle.config("image_encoder/config.json")
        with pytest.raises(BundleError, match=r"unet/model\.onnx: not a JSON object"):
            bundle.config("unet/model.onnx")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", r"cannot be read \(got list, wanted"),
        ('{"schema": 1}', "not a valid manifest"),
        ('{"schema": 1, "graphs": {"unet": {"spec": 3}}, "files": {}}', "not a valid manifest"),
    ],
)
def test_a_damaged_manifest(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=f"{MANIFEST}: {message} .*; export the bundle again"):
        Manifest.read(tmp_path)


def test_a_manifest_reads_as_it_was_written(bundle_path: Path) -> None:
    manifest = Manifest.read(bundle_path)
    assert manifest.to_json() == (bundle_path / MANIFEST).read_text()
    unet = manifest.graphs["unet"]
    dialect = Dialect(model="unet/model.cuda.onnx", parity=unet.parity, changed={"NhwcConv": 98})
    variant = Variant(
        model="unet/model.controlnet.onnx",
        spec=unet.spec,
        parity=unet.parity,
        islands=("/conv_in",),
        dialects={"cuda": dialect},
    )
    unet = replace(
        unet,
        dialects={"cuda": dialect},
        dtype="float16",
        islands=("/conv_in", "/conv_out"),
        variants={"controlnet": variant},
    )
    manifest = replace(manifest, graphs={"unet": unet})
    edit_manifest(bundle_path, **json.loads(manifest.to_json()))
    assert Manifest.read(bundle_path) == manifest


def test_schema_1(bundle_path: Path) -> None:
    """There the dtypes were the bundle's, not the graphs'."""
    manifest = Manifest.read(bundle_path)
    record = json.loads(manifest.to_json())
    for graph in record["graphs"].values():
        for key in ("dtype", "weights_dtype", "islands", "variants", "dialects"):
            del graph[key]
    edit_manifest(bundle_path, schema=1, dtype="float32", weights_dtype="float16", graphs=record["graphs"])
    read = Manifest.read(bundle_path)
    assert {graph.weights_dtype for graph in read.graphs.values()} == {"float16"}
    assert read.to_json() == manifest.to_json().replace('"weights_dtype": "float32"', '"weights_dtype": "float16"')


def test_a_backend_is_told_of_dialects(bundle_path: Path, opened: Opened) -> None:
    manifest = Manifest.read(bundle_path)
    unet = manifest.graphs["unet"]
    file = bundle_path / "unet" / "model.cuda.onnx"
    shutil.copy(bundle_path / unet.model, file)
    dialect = Dialect(model="unet/model.cuda.onnx", parity=unet.parity, changed={})
    files = manifest.files | {dialect.model: manifest.files[unet.model]}
    graphs = manifest.graphs | {"unet": replace(unet, dialects={"cuda": dialect})}
    edit_manifest(bundle_path, **json.loads(replace(manifest, files=files, graphs=graphs).to_json()))
    with Bundle.open(bundle_path) as bundle:
        bundle.engine("unet")
        bundle.engine("vae_decoder")
    assert opened.dialects == {"unet": {"cuda": file}, "vae_decoder": {}}
    file.write_bytes(b"other")
    with Bundle.open(bundle_path) as bundle, pytest.raises(BundleError, match=r"model\.cuda\.onnx: altered"):
        bundle.engine("unet")


@pytest.mark.parametrize(("free", "weights", "taken"), [(8, 1, True), (7, 1, False), (None, 1, True), (1, 0, True)])
def test_weights_in_8_bits_are_widened_where_there_is_room(
    free: int | None, weights: int, taken: bool, bundle_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = Manifest.read(bundle_path)
    unet = manifest.graphs["unet"]
    file = shutil.copy(bundle_path / unet.model, bundle_path / "unet" / "model.cpu.onnx")
    dialect = Dialect(model="unet/model.cpu.onnx", parity=unet.parity, changed={})
    files = manifest.files | {dialect.model: manifest.files[unet.model]}
    narrow = replace(unet, dialects={"cpu": dialect}, weights_dtype="float32, int8" if weights else "float32")
    edit_manifest(
        bundle_path, **json.loads(replace(manifest, files=files, graphs=manifest.graphs | {"unet": narrow}).to_json())
    )
    size = files[unet.weights].bytes
    monkeypatch.setattr(bundle_module, "free_memory", lambda: None if free is None else free * size)
    with Bundle.open(bundle_path) as bundle:
        bundle.engine("unet")
    assert opened.dialects == {"unet": {"cpu": file} if taken else {}}


def test_what_another_thread_has_freed_meanwhile(
    bundle_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bundle.open(bundle_path) as bundle:
        unet, _ = bundle.engine("unet"), bundle.engine("vae_decoder")
        monkeypatch.setattr(unet, "close", lambda: bundle.release("vae_decoder"))
        bundle.release("unet", "vae_decoder")
        assert opened.engines["vae_decoder"]._run is None


def test_shapes_are_tuples(bundle_path: Path) -> None:
    manifest = Manifest.read(bundle_path)
    assert manifest.graphs["unet"].spec.inputs[0].shape == ("batch", 4, "height", "width")
