"""A convolution of a picture of doubled size is computed from the picture before that: sub-pixel convolution."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgediffusion.engines.spec import Array

from ..cuda.rewriter import Rewriter
from ..graph import attribute, rebuild, shapes

TO_MATRIX, TO_KERNEL, TO_ROWS, LAST = (f"subpixels/{name}" for name in ("matrix", "kernel", "rows", "last"))
PHASES = tuple(itertools.product((0, 1), repeat=2))  # of the result's rows and columns
DOUBLED = {"mode": b"nearest", "nearest_mode": b"floor", "coordinate_transformation_mode": b"asymmetric"}


def to_subpixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Four kernels of 2 x 2 on the small picture, one a phase, in place of one of 3 x 3 on the large one.

    Doubling repeats each pixel, so that of the nine weights those that meet the same one are added up, once when the
    graph is loaded: 16 products for 4 pixels in place of 36 (arXiv:1609.07009, section 3). Where the size is not simply
    doubled, as in a UNet, whose half of 9 is 5, the last row needs other sums: left alone.
    """
    graph, sizes, constants = Rewriter(model), shapes(model), dict[str, Array]()
    for resize in graph.of_type("Resize"):
        conv = graph.only_reader(resize.output[0], "Conv")
        if conv is None or not _doubles(graph, resize) or not _is_3x3(conv):
            continue
        made, taken, *_ = map(int, sizes[conv.input[1]])
        matrix, kernel = f"{TO_MATRIX}/{made}x{taken}", f"{TO_KERNEL}/{made}x{taken}"
        constants |= {matrix: np.array([made * taken, 9]), kernel: np.array([made, taken, 2, 2])}
        result, weights = conv.output[0], f"{conv.input[1]}/matrix"
        new = [helper.make_node("Reshape", [conv.input[1], matrix], [weights], weights)]
        for row, column in PHASES:
            sums = f"subpixels/{row}{column}"
            constants[sums] = _sums(row, column)
            summed, folded, phase = (f"{result}/{name}{row}{column}" for name in ("summed", "folded", "phase"))
            new += [
                helper.make_node("MatMul", [weights, sums], [summed], summed),
                helper.make_node("Reshape", [summed, kernel], [folded], folded),
                helper.make_node(
                    "Conv",
                    [resize.input[0], folded, *conv.input[2:]],
                    [phase],
                    phase,
                    kernel_shape=[2, 2],
                    pads=[1 - row, 1 - column, row, column],
                ),
            ]
        graph.replace([resize, conv], [*new, *_woven(result)])
        constants |= {TO_ROWS: np.array([0, 0, 0, -1]), f"{TO_ROWS}/each": np.array([0, 0, -1]), LAST: np.array([-1])}
    done = graph.result()
    added = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return rebuild(done, done.graph.node, [*done.graph.initializer, *added])


def _doubles(graph: Rewriter, resize: onnx.NodeProto) -> bool:
    scales = graph.constant(resize.input[2])
    exact = scales is not None and scales.tolist() == [1, 1, 2, 2]
    return exact and all(attribute(resize, name) == value for name, value in DOUBLED.items())


def _is_3x3(conv: onnx.NodeProto) -> bool:
    wanted = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1], "group": 1}
    return all(attribute(conv, name) == value for name, value in wanted.items())


def _sums(row: int, column: int) -> Array:
    """(9, 4): which of 3 x 3 weights each of 2 x 2 is the sum of, in the phase (`row`, `column`) of the result."""
    halves = np.array([[[1, 0], [0, 1], [0, 1]], [[1, 0], [1, 0], [0, 1]]], np.float32)
    return np.kron(halves[row], halves[column])


def _woven(result: str) -> list[onnx.NodeProto]:
    """`result`, (batch, channels, 2 height, 2 width), of its four phases: faster than DepthToSpace on the CPU."""
    nodes = []
    for row in (0, 1):
        phases = [f"{result}/phase{row}{column}" for column in (0, 1)]
        apart = [f"{phase}/1" for phase in phases]
        pairs, line = f"{result}/pairs{row}", f"{result}/line{row}"
        nodes += [
            helper.make_node("Unsqueeze", [phase, LAST], [name], name)
            for phase, name in zip(phases, apart, strict=True)
        ]
        nodes += [
            helper.make_node("Concat", apart, [pairs], pairs, axis=-1),
            helper.make_node("Reshape", [pairs, TO_ROWS], [line], line),
        ]
    lines, width, shape = (f"{result}/{name}" for name in ("lines", "width", "shape"))
    return [
        *nodes,
        helper.make_node("Concat", [f"{result}/line0", f"{result}/line1"], [lines], lines, axis=-1),
        helper.make_node("Shape", [f"{result}/line0"], [width], width, start=-1),
        helper.make_node("Concat", [f"{TO_ROWS}/each", width], [shape], shape, axis=0),
        helper.make_node("Reshape", [lines, shape], [result], f"{result}/woven"),
    ]
