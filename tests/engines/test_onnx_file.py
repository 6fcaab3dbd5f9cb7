from __future__ import annotations

from pathlib import Path

import pytest

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.onnx_file import read_onnx
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import TensorSpec

DATA = Path(__file__).parent / "data"
LOCATION = b"tiny.bin"


def test_inputs_outputs_opset_and_data() -> None:
    file = read_onnx(DATA / "tiny.onnx")
    assert file.spec.inputs == (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("offset", "float32", (3,)))
    assert file.spec.outputs == (TensorSpec("y", "float32", ("batch", 3)),)
    assert (file.opset, file.data) == (18, ("tiny.bin",))


@pytest.mark.parametrize("location", [b"../x.bin", b"/abc.bin", b"C:\\a.bin", b"a/../b.c"])
def test_weights_outside_of_the_folder(tmp_path: Path, location: bytes) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(_with_location(location))
    with pytest.raises(BundleError, match=r"which is outside of its folder; do not use this file"):
        read_onnx(model)
    spec = read_onnx(DATA / "tiny.onnx").spec
    with pytest.raises(BundleError, match="ONNX Runtime cannot load it"):
        open_engine(model, spec, device="cpu")


def _with_location(location: bytes) -> bytes:
    model = (DATA / "tiny.onnx").read_bytes()
    assert len(location) == len(LOCATION)
    assert model.count(LOCATION) == 1
    return model.replace(LOCATION, location)


@pytest.mark.parametrize("content", [b"", b"graph", b"\xff" * 40, b"\x3a\x7f"])
def test_no_onnx_file(tmp_path: Path, content: bytes) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx: not an ONNX file that can be read"):
        read_onnx(model)


def test_a_truncated_file(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    content = (DATA / "tiny.onnx").read_bytes()
    model.write_bytes(content[:-20])
    with pytest.raises(BundleError, match=r"not an ONNX file that can be read .*cut short"):
        read_onnx(model)
