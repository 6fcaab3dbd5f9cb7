"""Reading and writing safetensors files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgediffusion.engines.errors import ExportError
from edgediffusion.export.weights import load, read_header, write_tensors

TENSORS = {
    "odd": torch.tensor([1.0, -2.0, 3.0], dtype=torch.float16),
    "b.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
    "a": torch.tensor(0.3, dtype=torch.bfloat16),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


def test_header_says_where_the_bytes_are(file: Path) -> None:
    header = read_header(file)
    assert header.keys() == TENSORS.keys()
    for key, stored in header.items():
        assert stored.shape == tuple(TENSORS[key].shape)
        content = file.read_bytes()[stored.offset : stored.offset + stored.length]
        assert content == TENSORS[key].reshape(-1).view(torch.uint8).numpy().tobytes()


def test_load_gives_the_values_in_float32(file: Path) -> None:
    for key, stored in read_header(file).items():
        value = load(key, stored)
        assert value.dtype == torch.float32
        assert torch.equal(value, TENSORS[key].float())


def test_load_refuses_nan(tmp_path: Path) -> None:
    save_file({"x": torch.tensor([1, float("nan")])}, tmp_path / "nan.safetensors")
    with pytest.raises(ExportError, match=r"nan.safetensors: x holds NaN or infinity"):
        load("x", read_header(tmp_path / "nan.safetensors")["x"])


def test_written_tensors_are_read_by_safetensors(file: Path, tmp_path: Path) -> None:
    header = read_header(file)
    placed = write_tensors(tmp_path / "out.safetensors", {f"new.{key}": tensor for key, tensor in header.items()})
    assert placed == read_header(tmp_path / "out.safetensors")
    for key, value in load_file(tmp_path / "out.safetensors").items():
        assert torch.equal(value, TENSORS[key.removeprefix("new.")])


def test_every_tensor_is_aligned(file: Path, tmp_path: Path) -> None:
    sizes = {"F32": 4, "F16": 2, "BF16": 2}
    placed = write_tensors(tmp_path / "out.safetensors", dict(sorted(read_header(file).items())))
    assert all(stored.offset % sizes[stored.dtype] == 0 for stored in placed.values())


def test_a_copy_of_a_copy_is_the_same_bytes(file: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_tensors(first, read_header(file))
    write_tensors(second, read_header(first))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0{]", b"\x02\0\0\0\0\0\0\0{} "])
def test_no_safetensors_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ExportError, match=r"x.safetensors: not a whole safetensors file"):
        read_header(tmp_path / "x.safetensors")
