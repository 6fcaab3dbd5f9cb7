"""A linear layer whose result is split in two becomes two layers, each of half the weight."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..cuda.rewriter import Rewriter
from ..graph import attribute, rebuild


def split_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Split weight and bias, once when the graph is loaded, and not the result, at each run.

    That is the gated feed-forward (GEGLU, arXiv:2002.05202), whose inner layer is the widest of a UNet's.
    """
    graph = Rewriter(model)
    limits: dict[str, int] = {"halves/axis": 0}
    for split in graph.of_type("Split"):
        biased = graph.maker(split.input[0], "Add")
        product = biased and graph.maker(biased.input[0], "MatMul")
        turned = product and graph.maker(product.input[1], "Transpose")
        if not (biased and product and turned) or len(split.output) != 2 or attribute(split, "axis") != -1:
            continue
        weight, bias = turned.input[0], biased.input[1]
        alone = all(len(graph.readers(node.output[0])) == 1 for node in (biased, product, turned))
        if not alone or not graph.initializers.keys() >= {weight, bias}:
            continue
        half, new = graph.initializers[bias][0] // 2, []
        for i, result in enumerate(split.output):
            start, end = (f"halves/{limit}" for limit in (i * half, (i + 1) * half))
            limits |= {start: i * half, end: (i + 1) * half}
            parts = [f"{name}/{i}" for name in (weight, bias)]
            new += [
                helper.make_node("Slice", [name, start, end, "halves/axis"], [part], part)
                for name, part in zip((weight, bias), parts, strict=True)
            ]
            wide, scaled = f"{parts[0]}/transposed", f"{result}/product"
            new += [
                helper.make_node("Transpose", [parts[0]], [wide], wide, perm=[1, 0]),
                helper.make_node("MatMul", [product.input[0], wide], [scaled], scaled),
                helper.make_node("Add", [scaled, parts[1]], [result], result),
            ]
        graph.replace([turned, product, biased, split], new)
    result = graph.result()
    constants = [numpy_helper.from_array(np.array([value]), name) for name, value in limits.items()]
    return rebuild(result, result.graph.node, [*result.graph.initializer, *constants])
