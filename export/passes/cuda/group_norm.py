"""Group normalisation, with the SiLU after it where there is one, becomes GroupNorm."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from ..graph import attribute
from .rewriter import TO_FIRST, TO_LAST, Rewriter, fused, rewritten, transpose

RANK = 4  # the kernel takes pictures only,
CHANNELS_PER_THREAD = 2  # and groups that two channels a thread fill


def fuse_group_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fuse the instance normalisation of reshaped groups (arXiv:1803.08494) and its affine map.

    The kernel knows pictures whose channels are last only, so one is transposed before and after it, which is what
    `to_channels_last` takes out again. It wants weight and bias in float32.
    """
    return rewritten(model, "InstanceNormalization", _fuse)


def _fuse(graph: Rewriter, norm: onnx.NodeProto) -> None:
    grouped = graph.maker(norm.input[0], "Reshape")
    after = graph.chain(norm.output[0], "Reshape", "Mul", "Add")
    if grouped is None or not after:
        return
    shape = graph.constant(grouped.input[1])
    parameters = [name for node in after[1:] if (name := graph.weight(node.input[1])) is not None]
    if shape is None or len(parameters) != 2 or _rank(graph, after[1].input[1]) != RANK:
        return
    groups = int(shape[1])
    if graph.initializers[parameters[0]][0] // groups % CHANNELS_PER_THREAD:
        return
    silu = _silu(graph, after[-1].output[0])
    names = [f"{name}/wide" for name in parameters]
    casts = [
        helper.make_node("Cast", [name], [wide], wide, to=TensorProto.FLOAT)
        for name, wide in zip(parameters, names, strict=True)
    ]
    result = (silu or after)[-1].output[0]
    before, behind = f"{result}/before", f"{result}/behind"
    new = fused(
        "GroupNorm",
        [before, *names],
        [behind],
        groups=groups,
        epsilon=attribute(norm, "epsilon"),
        activation=int(bool(silu)),
        channels_last=1,
    )
    around = transpose(grouped.input[0], before, TO_LAST), transpose(behind, result, TO_FIRST)
    graph.replace([grouped, norm, *after, *silu], [*casts, new, *around])


def _silu(graph: Rewriter, value: str) -> list[onnx.NodeProto]:
    """The sigmoid and the product of `value` sigmoid(`value`), when nothing else reads `value`."""
    readers = {node.op_type: node for node in graph.readers(value)}
    if value in graph.outputs or len(graph.readers(value)) != 2 or readers.keys() != {"Sigmoid", "Mul"}:
        return []
    sigmoid, product = readers["Sigmoid"], readers["Mul"]
    return [sigmoid, product] if set(product.input) == {value, sigmoid.output[0]} else []


def _rank(graph: Rewriter, value: str) -> int | None:
    """The rank at which a weight (channels,) reshaped to (channels, 1, ...) meets a batch of values."""
    unsqueeze = graph.maker(value, "Unsqueeze")
    axes = None if unsqueeze is None else graph.constant(unsqueeze.input[1])
    return None if axes is None else 2 + len(axes)
