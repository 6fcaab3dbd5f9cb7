"""Makes the graphs that the tests and engines/probe.py run: python tests/engines/data/make.py (needs onnx)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

HERE = Path(__file__).parent
ENGINES = HERE.parents[2] / "engines"


def tiny() -> GraphProto:
    """y = x @ weights + offset, with `weights` (2, 3) in tiny.bin beside it."""
    values = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    (HERE / "tiny.bin").write_bytes(values.tobytes())
    weights = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=values.shape)
    weights.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "tiny.bin", "offset": "0", "length": str(values.nbytes)}.items():
        weights.external_data.add(key=key, value=value)
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["product"]),
        helper.make_node("Add", ["product", "offset"], ["y"]),
    ]
    return graph(nodes, {"x": ["batch", 2], "offset": [3]}, {"y": ["batch", 3]}, weights)


def probe() -> GraphProto:
    """y = conv(x, 2) + 1."""
    two = numpy_helper.from_array(np.full((1, 1, 1, 1), 2, np.float32), "two")
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    shape: list[int | str] = [1, 1, "height", "width"]
    return graph([helper.make_node("Conv", ["x", "two", "one"], ["y"])], {"x": shape}, {"y": shape}, two, one)


def graph(
    nodes: list[NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    *initializers: TensorProto,
) -> GraphProto:
    return helper.make_graph(nodes, "graph", infos(inputs), infos(outputs), list(initializers))


def infos(tensors: dict[str, list[int | str]]) -> list[ValueInfoProto]:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in tensors.items()]


def main() -> None:
    for path, made in {HERE / "tiny.onnx": tiny(), ENGINES / "probe.onnx": probe()}.items():
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(path)


if __name__ == "__main__":
    main()
