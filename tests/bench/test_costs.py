"""FLOPs and bytes, on graphs whose cost is known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgediffusion.bench.costs import Cost, count
from edgediffusion.engines.errors import EdgeDiffusionError
from edgediffusion.engines.spec import GraphSpec, TensorSpec


def save(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[TensorSpec], weights: dict[str, tuple[int, ...]]
) -> GraphSpec:
    """A graph from `inputs` to y in float32, with weights in float16."""
    tensors = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in inputs]
    halves = [onnx.numpy_helper.from_array(np.zeros(shape, np.float16), name) for name, shape in weights.items()]
    widened = [helper.make_node("Cast", [name], [f"{name}.wide"], to=TensorProto.FLOAT) for name in weights]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([*widened, *nodes], "g", tensors, [output], halves)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return GraphSpec("g", tuple(inputs), (TensorSpec("y", "float32", ()),))


def test_a_convolution_in_groups(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w.wide"], ["y"], pads=[1, 1, 1, 1], group=2)
    spec = save(tmp_path / "m", [node], [TensorSpec("x", "float32", ("batch", 4, "height", 8))], {"w": (6, 2, 3, 3)})
    outputs = 2 * 6 * 5 * 8
    flops = outputs * 2 * (2 * 3 * 3)
    moved = 2 * (6 * 2 * 3 * 3) + 4 * (2 * 4 * 5 * 8) + 4 * outputs
    assert count(tmp_path / "m", spec, {"batch": 2, "height": 5}) == Cost(flops=flops, bytes=moved)


def test_products_of_matrices_behind_a_reshape(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w.wide"], ["h"]),
        helper.make_node("Squeeze", ["h"], ["s"]),
        helper.make_node("Gemm", ["s", "v.wide"], ["y"], transA=1, transB=1),
    ]
    weights: dict[str, tuple[int, ...]] = {"w": (3, 7), "v": (11, 5)}
    spec = save(tmp_path / "m", nodes, [TensorSpec("x", "float32", (1, "rows", 3))], weights)
    assert count(tmp_path / "m", spec, {"rows": 5}).flops == 2 * 5 * 7 * 3 + 2 * 7 * 11 * 5


def test_a_shape_that_does_not_follow(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["n"]),
        helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w.wide"], ["y"]),
    ]
    spec = save(tmp_path / "m", nodes, [TensorSpec("x", "float32", (2, 2))], {"w": (3, 7)})
    with pytest.raises(EdgeDiffusionError, match="the shape of 'f' is not known; measure without roofline"):
        count(tmp_path / "m", spec, {})
