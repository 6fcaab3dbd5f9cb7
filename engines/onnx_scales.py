"""A graph for parsers that know a Resize by the sizes of all axes or by scales, as opset 17 has it, and not by `axes`.

TensorRT 8.6 reads our graphs of opset 18 but for this: it takes height and width for the first two of four sizes, and
fails at the next convolution. Upsampling in a UNet doubles both, so constant scales say the same wherever the size of
the latents can be halved as often as the network does; elsewhere the build fails where the sizes do not meet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from .onnx_file import GRAPH, INITIALIZER, open_model
from .wire import Message, rewrite, write_field

_SCALES = "edgediffusion/twice"
_NODE = 1  # of a graph
_INPUT, _OP_TYPE, _ATTRIBUTE = 1, 4, 5  # of a node
_NAME = 1  # of an attribute
_SINCE_18 = {"axes", "antialias", "keep_aspect_ratio_policy"}


def with_scales(path: Path) -> bytes:
    """The model in the file `path`, each Resize along `axes` turned into one that doubles height and width.

    Raises:
        BundleError: it is no ONNX file.
    """
    with open_model(path) as model:
        return rewrite(model, (GRAPH,), _graph)


def _graph(graph: Message) -> bytes:
    return write_field(INITIALIZER, _tensor()) + rewrite(graph, (_NODE,), _node)


def _node(node: Message) -> bytes:
    resizes_axes = node.text(_OP_TYPE) == "Resize" and any(a.text(_NAME) == "axes" for a in node.messages(_ATTRIBUTE))
    return b"".join(_twice(node)) if resizes_axes else node.content()


def _twice(node: Message) -> Iterator[bytes]:
    """The node with its picture and the scales as inputs."""
    inputs = node.messages(_INPUT)
    for name in (inputs[0].content(), b"", _SCALES.encode()):
        yield write_field(_INPUT, name)
    for field, value in node:
        newer = field == _ATTRIBUTE and isinstance(value, Message) and value.text(_NAME) in _SINCE_18
        if field != _INPUT and not newer:
            yield write_field(field, value)


def _tensor() -> bytes:
    dims, float32, name, raw = 1, 2, 8, 9  # fields of a tensor
    values = struct.pack("<4f", 1, 1, 2, 2)
    fields: dict[int, int | bytes] = {dims: 4, float32: 1, name: _SCALES.encode(), raw: values}
    return b"".join(write_field(number, content) for number, content in fields.items())
