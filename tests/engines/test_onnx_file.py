from __future__ import annotations

from pathlib import Path

import pytest

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.onnx_file import EXTERNAL_DATA, GRAPH, INITIALIZER, TURNED, map_weights, read_onnx
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import TensorSpec
from edgediffusion.engines.wire import write_field

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
    model.write_bytes(_turned("../x.bin"))
    with pytest.raises(BundleError, match=r"which is outside of its folder; do not use this file"):
        map_weights(model)
    spec = read_onnx(DATA / "tiny.onnx").spec
    with pytest.raises(BundleError, match="ONNX Runtime cannot load it"):
        open_engine(model, spec, device="cpu")


def _turned(location: str) -> bytes:
    """A graph of nothing but a weight of shape (1, 2, 2, 1) whose place is `location`."""
    dims, data_type, name = 1, 2, 8
    entries = {"location": location, "offset": "0"}
    places = [write_field(1, key.encode()) + write_field(2, value.encode()) for key, value in entries.items()]
    fields = [*((dims, size) for size in (1, 2, 2, 1)), (data_type, 1), (name, f"k{TURNED}".encode())]
    tensor = [write_field(*field) for field in fields] + [write_field(EXTERNAL_DATA, place) for place in places]
    return write_field(GRAPH, write_field(INITIALIZER, b"".join(tensor)))


def _with_location(location: bytes) -> bytes:
    model = (DATA / "tiny.onnx").read_bytes()
    assert len(location) == len(LOCATION)
    assert model.count(LOCATION) == 1
    return model.replace(LOCATION, location)


@pytest.mark.parametrize("content", [b"", b"graph", b"\xff" * 40, b"\x3a\x7f"])
def test_no_onnx_file(tmp_path: Path, content: bytes) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(content)
    for read in (read_onnx, map_weights):
        with pytest.raises(BundleError, match=r"model\.onnx: not an ONNX file that can be read"):
            read(model)


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(_turned("w.bin"))
    with pytest.raises(BundleError, match=r"not an ONNX file that can be read \(.*No such file.*w\.bin"):
        map_weights(model)
    (tmp_path / "w.bin").write_bytes(bytes(8))
    with pytest.raises(BundleError, match=r"not an ONNX file that can be read \(.*cannot reshape array of size 2"):
        map_weights(model)


def test_a_truncated_file(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    content = (DATA / "tiny.onnx").read_bytes()
    model.write_bytes(content[:-20])
    with pytest.raises(BundleError, match=r"not an ONNX file that can be read .*cut short"):
        read_onnx(model)
