"""Our own operators (`engines/kernels`), for what moves more bytes than it computes: norms, sums and biases."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import onnx
from onnx import TensorProto, helper

from ..counted import apply_counted
from ..graph import attribute
from .rewriter import Rewriter, with_attributes

OWN_DOMAIN = "edgediffusion"
CHANNELS_LAST = "/channels_last"  # how `to_channels_last` ends the names of pictures
CHANNELS, MAX_CHANNELS = 8, 4096  # the kernels take multiples of the one, up to the other,
MAX_TOKEN_CHANNELS = 2048  # or, in a layer normalisation, up to this
BIAS = 3  # the first of what BiasGroupNorm adds: bias, embedding, skip


def to_own_kernels(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, int]]:
    """The graph of `to_cuda_dialect` with our operators, and how many places each pass of `PASSES` changed."""
    return apply_counted(model, PASSES)


def replace_group_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """GroupNorm and SkipGroupNorm become BiasGroupNorm, which reads and writes at the rate of the memory.

    What is added before a norm is an embedding, the same for every pixel, or a skip; both where there are both.
    """
    graph = _Graph(model)
    for norm in [*graph.of_type("GroupNorm"), *graph.of_type("SkipGroupNorm")]:
        weight = graph.maker(norm.input[1], "Cast")
        if weight is None or not graph.fits(norm.input[0], graph.initializers.get(weight.input[0])):
            continue
        skip = norm.input[3] if len(norm.input) > 3 else ""
        embedding = skip if graph.maker(skip, "Unsqueeze") is not None else ""
        y, total = norm.output[0], norm.output[1] if skip else ""
        if embedding and not graph.readers(total) and total not in graph.outputs:
            total = ""
        inputs = [*norm.input[:BIAS], "", embedding, "" if embedding else skip]
        new = _own("BiasGroupNorm", inputs, [y, total, f"{y}/sums"])
        graph.replace([norm], [with_attributes(new, norm, without=["channels_last"])])
    return graph.result()


def move_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """The bias of a convolution goes to the norm or the sum that reads the result, which adds it on the way.

    The provider adds it in a launch of its own, which reads and writes all of the result. So does BiasAdd, where
    nothing else takes it, but faster. Where the bias of a linear layer and a skip are added, BiasAdd adds both.
    """
    graph = _Graph(model)
    for conv in graph.of_type("NhwcConv"):
        if len(conv.input) > 2 and graph.fits(conv.input[0], graph.initializers.get(conv.input[2])):
            _move_bias(graph, conv)
    for biased in graph.of_type("Add"):
        bias, total = biased.input[1], graph.only_reader(biased.output[0], "Add")
        if total is None or graph.maker(biased.input[0], "FusedMatMul") is None:
            continue
        skip = _added(graph, total, biased.output[0])
        if skip is not None and graph.fits(biased.input[0], graph.initializers.get(bias)):
            graph.replace([biased, total], [_own("BiasAdd", [biased.input[0], bias, skip], total.output)])
    return graph.result()


def fuse_upsample(model: onnx.ModelProto) -> onnx.ModelProto:
    """A sum that is only read to be made twice as high and wide is written so."""
    graph = _Graph(model)
    for total in graph.of_type("BiasAdd"):
        resize = graph.only_reader(total.output[0], "Resize")
        if resize is None or (like := _doubled_like(graph, resize)) is None:
            continue
        assert attribute(resize, "mode") == b"nearest"
        inputs = [*total.input, *[""] * (3 - len(total.input)), like] if like else list(total.input)
        graph.replace([total, resize], [_own("BiasUpsample", inputs, resize.output)])
    return graph.result()


def _doubled_like(graph: _Graph, resize: onnx.NodeProto) -> str | None:
    """The picture whose size is twice that of another, or one less: what a UNet has halved; "" for just the double."""
    scales = graph.constant(resize.input[2])
    if scales is not None:
        return "" if scales.tolist() == [1, 2, 2, 1] else None
    shape = graph.maker(resize.input[3], "Shape") if len(resize.input) > 3 else None
    if shape is None or (attribute(shape, "start"), attribute(shape, "end")) != (1, 3):
        return None
    return shape.input[0] if shape.input[0].endswith(CHANNELS_LAST) else None


def fuse_layer_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """BiasLayerNorm takes the bias along that a linear layer or a convolution before it adds, and gives the sum."""
    graph = _Graph(model)
    for norm in graph.of_type("LayerNormalization"):
        tokens, scale, *shift = norm.input
        channels = graph.initializers.get(scale)
        if not shift or not graph.fits(tokens, channels, most=MAX_TOKEN_CHANNELS):
            continue
        if (add := graph.maker(tokens, "Add")) is not None and graph.initializers.get(add.input[1]) == channels:
            plain, bias = add.input
        elif (moved := _bias_before(graph, tokens)) is not None:
            reshape, add = moved
            for reader in graph.readers(add.output[0]):
                reader.input[0] = add.input[0]
            reshape.output[0] = plain = f"{tokens}/without_bias"
            bias = add.input[1]
        else:
            continue
        new = _own("BiasLayerNorm", [plain, scale, *shift, bias], [norm.output[0], tokens])
        graph.replace([add, norm], [with_attributes(new, norm, without=["axis", "stash_type"])])
    return graph.result()


def _bias_before(graph: _Graph, tokens: str) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """The Reshape that makes `tokens` of a picture, and the BiasAdd of that picture, which nothing else takes."""
    reshape = graph.maker(tokens, "Reshape")
    add = None if reshape is None else graph.maker(reshape.input[0], "BiasAdd")
    if reshape is None or add is None or len(add.input) > 2:
        return None
    others = [node for node in graph.readers(add.output[0]) if node.op_type != "Shape"]
    return (reshape, add) if others == [reshape] else None


def replace_bias_split_gelu(model: onnx.ModelProto) -> onnx.ModelProto:
    """BiasSplitGelu becomes BiasGeglu, which reads and writes at the rate of the memory, not at half of it."""
    graph = _Graph(model)
    for gelu in graph.of_type("BiasSplitGelu"):
        if graph.fits(gelu.input[0], graph.initializers.get(gelu.input[1]), multiple=2 * CHANNELS, most=sys.maxsize):
            graph.replace([gelu], [_own("BiasGeglu", list(gelu.input), gelu.output)])
    return graph.result()


PASSES: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "BiasGroupNorm": replace_group_norms,
    "BiasAdd": move_biases,
    "BiasUpsample": fuse_upsample,
    "BiasLayerNorm": fuse_layer_norm,
    "BiasGeglu": replace_bias_split_gelu,
}


class _Graph(Rewriter):
    """A graph in float16, parts of which may be in float32."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self._wide = set[str]()
        for node in self.nodes:
            follows = node.op_type != "Cast" and node.input and node.input[0] in self._wide
            if follows or attribute(node, "to") == TensorProto.FLOAT:
                self._wide.update(node.output)

    def fits(
        self, value: str, weight: tuple[int, ...] | None, *, multiple: int = CHANNELS, most: int = MAX_CHANNELS
    ) -> bool:
        """Whether the kernels take a `value` in float16 and a `weight` with an entry for each of its channels."""
        if value in self._wide or weight is None or len(weight) != 1:
            return False
        return weight[0] % multiple == 0 and weight[0] <= most

    def alike(self, value: str, other: str) -> bool:
        """Whether two values are of one shape, for all that the graph says: pictures, or tokens and their residual."""
        pictures = value.endswith(CHANNELS_LAST) and other.endswith(CHANNELS_LAST) and value != other
        return (pictures and self.maker(other, "Unsqueeze") is None) or (
            self.maker(value, "Add") is not None and self.maker(other, "SkipLayerNormalization") is not None
        )

    def result(self) -> onnx.ModelProto:
        """The rewritten model."""
        model = super().result()
        if OWN_DOMAIN not in {opset.domain for opset in model.opset_import}:
            model.opset_import.append(helper.make_opsetid(OWN_DOMAIN, 1))
        return model


def _move_bias(graph: _Graph, conv: onnx.NodeProto) -> None:
    value, bias = conv.output[0], conv.input[2]
    del conv.input[2]
    readers = graph.readers(value)
    if len(readers) == 1 and value not in graph.outputs:
        if _give(graph, readers[0], value, bias):
            return
        if (total := _added(graph, readers[0], value)) is not None:
            graph.replace(readers, [_own("BiasAdd", [value, bias, total], readers[0].output)])
            return
    conv.output[0] = plain = f"{value}/without_bias"
    norms = [node for node in readers if node.op_type == "BiasGroupNorm" and not any(node.input[BIAS:])]
    if len(norms) == 1:
        (norm,) = norms
        norm.input[0], norm.input[BIAS], norm.output[1] = plain, bias, value
        graph.reindex()
    else:
        graph.replace([], [_own("BiasAdd", [plain, bias], [value])])


def _give(graph: _Graph, reader: onnx.NodeProto, value: str, bias: str) -> bool:
    """Whether `reader` was given `bias`, beside what it has."""
    place = {"BiasGroupNorm": BIAS, "BiasAdd": 1}.get(reader.op_type)
    if place is None or (reader.input[0] == value) == (reader.input[-1] == value):
        return False
    if reader.input[place]:
        both = f"{bias}/and/{reader.input[place]}"
        graph.replace([], [helper.make_node("Add", [reader.input[place], bias], [both], both)])
        bias = both
    reader.input[place] = bias
    graph.reindex()
    return True


def _added(graph: _Graph, reader: onnx.NodeProto, value: str) -> str | None:
    """What a sum adds to `value`, of the same shape."""
    if reader.op_type != "Add":
        return None
    other = reader.input[1] if reader.input[0] == value else reader.input[0]
    return other if graph.alike(value, other) else None


def _own(op_type: str, inputs: list[str], results: Iterable[str]) -> onnx.NodeProto:
    results = list(results)
    node: onnx.NodeProto = helper.make_node(op_type, inputs, results, f"{results[0]}/{op_type}", domain=OWN_DOMAIN)
    return node
