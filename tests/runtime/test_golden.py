"""`edgediffusion verify`: graphs against outputs that the bundle carries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.spec import Array
from edgediffusion.runtime.bundle import Bundle
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.golden import golden_path, read_golden, verify
from edgediffusion.runtime.manifest import MANIFEST
from edgediffusion.runtime.pipeline import BUILTIN

from .conftest import FUNCTIONS, SPECS, Opened

FEEDS: dict[str, dict[str, Array]] = {
    "text_encoder": {"input_ids": np.arange(77)[None]},
    "unet": {
        "sample": np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 4, 2, 2),
        "timestep": np.array([500], np.float32),
        "encoder_hidden_states": np.ones((1, 77, 8), np.float32),
    },
    "vae_decoder": {"latent_sample": np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 4, 2, 2)},
    "vae_encoder": {"sample": np.linspace(-1, 1, 768, dtype=np.float32).reshape(1, 3, 16, 16)},
}


def write_golden(bundle: Path, name: str, outputs: Mapping[str, Array]) -> None:
    """A safetensors file, byte by byte, and its line in the manifest."""
    header: dict[str, object] = {"__metadata__": {"label": "a sample"}}
    data = b""
    arrays = {f"input.{key}": array for key, array in FEEDS[name].items()}
    for key, array in (arrays | {f"output.{key}": array for key, array in outputs.items()}).items():
        dtype = {"float32": "F32", "int64": "I64"}[str(array.dtype)]
        content = array.tobytes()
        header[key] = {"dtype": dtype, "shape": array.shape, "data_offsets": (len(data), len(data) + len(content))}
        data += content
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + data
    path = bundle / "golden" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    manifest = json.loads((bundle / MANIFEST).read_text())
    record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"][f"golden/{name}.safetensors"] = record
    (bundle / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def golden_bundle(bundle_path: Path) -> Path:
    for name, feeds in FEEDS.items():
        write_golden(bundle_path, name, FUNCTIONS[name](feeds))
    return bundle_path


def test_where_a_bundle_keeps_them() -> None:
    """Bundles that were written have these names."""
    assert golden_path("unet", None) == "golden/unet.safetensors"
    assert golden_path("unet", "controlnet") == "golden/unet.controlnet.safetensors"


def test_every_graph_agrees(golden_bundle: Path, opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(golden_bundle), "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)
    assert [check["component"] for check in checks] == list(FEEDS)
    assert {(check["error"], check["tolerance"], check["sample"]) for check in checks} == {(0.0, 1e-4, "a sample")}


def test_a_graph_that_does_not(golden_bundle: Path, opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    """One value of the picture is off by 1 % of the largest."""
    wanted = FUNCTIONS["vae_decoder"](FEEDS["vae_decoder"])["sample"].copy()
    wanted.flat[np.abs(wanted).argmax()] *= 1.01
    write_golden(golden_bundle, "vae_decoder", {"sample": wanted})
    assert main(["verify", str(golden_bundle)]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines if line[0] in FEEDS] == [
        ["text_encoder", "agrees"],
        ["unet", "agrees"],
        ["vae_decoder", "DISAGREES"],
        ["vae_encoder", "agrees"],
    ]
    assert ["9.9e-03,", "allowed", "1e-04", "sample", "a", "sample"] in [line[2:] for line in lines]


def test_one_graph_is_open_at_a_time(golden_bundle: Path, opened: Opened) -> None:
    with Bundle.open(golden_bundle) as bundle:
        for i, _ in enumerate(verify(bundle)):
            assert len(opened.names) == i + 1


def test_no_golden_outputs(bundle_path: Path, opened: Opened) -> None:
    write_golden(bundle_path, "unet", FUNCTIONS["unet"](FEEDS["unet"]))
    with (
        Bundle.open(bundle_path) as bundle,
        pytest.raises(
            BundleError, match="no golden outputs of text_encoder, vae_decoder, vae_encoder; export it again"
        ),
    ):
        list(verify(bundle))


@pytest.mark.parametrize("content", [b"", b"\5\0\0\0\0\0\0\0[1,2]", b"\2\0\0\0\0\0\0\0{}"])
def test_a_file_that_is_not_golden(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "unet.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"unet\.safetensors: not golden outputs \(.*\); export the bundle again"):
        read_golden(tmp_path / "unet.safetensors", SPECS["unet"])


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "3 of 3 inputs, 0 outputs"),
        ({"sample": np.ones((1, 4, 2, 2), np.float32)}, r"KeyError\('sample'\)"),
        ({"out_sample": np.ones((4, 2, 2), np.float32)}, r"out_sample of shape \(4, 2, 2\)"),
        ({"out_sample": np.ones((0, 4, 2, 2), np.float32)}, r"out_sample of shape \(0, 4, 2, 2\)"),
    ],
)
def test_outputs_of_another_graph(golden_bundle: Path, outputs: dict[str, Array], message: str) -> None:
    write_golden(golden_bundle, "unet", outputs)
    with Bundle.open(golden_bundle) as bundle, pytest.raises(BundleError, match=f"not golden outputs .*{message}"):
        list(verify(bundle))


@pytest.mark.usefixtures("opened")
def test_outputs_that_are_larger_than_the_graphs(golden_bundle: Path) -> None:
    write_golden(golden_bundle, "unet", {"out_sample": np.zeros((1, 4, 2, 3), np.float32)})
    with Bundle.open(golden_bundle) as bundle:
        assert {check.component: check.error for check in verify(bundle)}["unet"] == np.inf


@pytest.mark.gpu
def test_the_built_in_model_agrees_on_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(BUILTIN), "--device", "cuda"]) == 0, capsys.readouterr().out
