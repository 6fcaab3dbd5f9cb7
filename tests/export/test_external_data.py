"""A graph from a stranger may not read files outside its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import StringStringEntryProto, TensorProto, helper

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import GraphSpec, TensorSpec

SPEC = GraphSpec("net", (TensorSpec("x", "float32", (4,)),), (TensorSpec("y", "float32", (4,)),))


def write_graph(path: Path, location: str) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    place = {"location": location, "offset": "0", "length": "16"}
    weight.external_data.extend(StringStringEntryProto(key=key, value=value) for key, value in place.items())
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "net", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_only_files_in_its_folder_are_read(tmp_path: Path) -> None:
    folder, secret = tmp_path / "unet", tmp_path / "secret"
    folder.mkdir()
    for path in (secret, folder / "weights"):
        path.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    write_graph(folder / "model.onnx", "weights")
    with open_engine(folder / "model.onnx", SPEC, device="cpu") as engine:
        assert engine({"x": np.ones(4, np.float32)})["y"].tolist() == [1, 2, 3, 4]
    for location in ("../secret", str(secret)):
        write_graph(folder / "model.onnx", location)
        with pytest.raises(BundleError, match=r"model\.onnx: ONNX Runtime cannot load it \(.*; export it again$"):
            open_engine(folder / "model.onnx", SPEC, device="cpu")
