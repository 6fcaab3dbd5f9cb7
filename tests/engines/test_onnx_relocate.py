from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.onnx_relocate import loadable, relocated
from edgediffusion.engines.packed import Packed

# TensorProto: dims 2, external_data (location, a), (offset, 5), then data_location 1; float_data 1 between.
ENTRIES = b"\x6a\x0d\x0a\x08location\x12\x01a" + b"\x6a\x0b\x0a\x06offset\x12\x015"
TENSOR = b"\x08\x02" + b"\x25\x00\x00\x80\x3f" + ENTRIES + b"\x70\x01"
GRAPH = b"\x0a\x03abc" + b"\x2a" + bytes([len(TENSOR)]) + TENSOR
MODEL = b"\x08\x0a" + b"\x3a" + bytes([len(GRAPH)]) + GRAPH


def test_weights_are_pointed_into_the_pack() -> None:
    moved = relocated(MODEL, {"a": 100}, "pack.edz")
    tensor = b"\x08\x02\x25\x00\x00\x80\x3f\x70\x01"
    tensor += b"\x6a\x14\x0a\x08location\x12\x08pack.edz" + b"\x6a\x0d\x0a\x06offset\x12\x03105"
    graph = b"\x0a\x03abc\x2a" + bytes([len(tensor)]) + tensor
    assert moved == b"\x08\x0a\x3a" + bytes([len(graph)]) + graph


def test_weights_in_other_files_are_refused() -> None:
    with pytest.raises(ValueError, match="weights in 'a', which the pack does not have there"):
        relocated(MODEL, {"b": 100}, "pack.edz")


def test_weights_in_the_graph_stay() -> None:
    model = MODEL.replace(
        TENSOR, TENSOR.replace(ENTRIES, b"\x22" + bytes([len(ENTRIES) - 2]) + bytes(len(ENTRIES) - 2))
    )
    assert relocated(model, {}, "pack.edz") == model


def test_lengths_of_more_than_a_byte() -> None:
    name = "x" * 300
    moved = relocated(MODEL, {"a": 1 << 40}, name)
    assert name.encode() in moved
    assert str((1 << 40) + 5).encode() in moved
    assert relocated(moved, {name: -(1 << 40)}, "a") == relocated(MODEL, {"a": 0}, "a")


@pytest.mark.parametrize("content", [b"\x3a", b"\x3a\x05a", b"\x0f", b"\x3a\x02\x2a\x04", b"\xff" * 20, MODEL[:-1]])
def test_what_is_no_graph(content: bytes, tmp_path: Path) -> None:
    packed = Packed(tmp_path / "a.edz", {"unet/model.onnx": memoryview(content)}, {}, "unet/model.onnx")
    with pytest.raises(
        BundleError, match=r"a\.edz/unet/model\.onnx: not an ONNX file that can be read \(.*\); copy the"
    ):
        loadable(packed, onnxruntime.SessionOptions())
