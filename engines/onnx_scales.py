"""A graph for parsers that know a Resize by the sizes of all axes or by scales, as opset 17 has it, and not by `axes`.

TensorRT 8.6 reads our graphs of opset 18 but for this: it takes height and width for the first two of four sizes, and
fails at the next convolution. Upsampling in a UNet doubles both, so constant scales say the same wherever the size of
the latents can be halved as often as the network does; elsewhere the build fails where the sizes do not meet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from .onnx_file import GRAPH, Message, open_model

_SCALES = "edgediffusion/twice"
_NODE, _INITIALIZER = 1, 5  # of a graph
_INPUT, _OP_TYPE, _ATTRIBUTE = 1, 4, 5  # of a node
_NAME = 1  # of an attribute
_SINCE_18 = {"axes", "antialias", "keep_aspect_ratio_policy"}


def with_scales(path: Path) -> bytes:
    """The model in the file `path`, each Resize along `axes` turned into one that doubles height and width."""
    with open_model(path) as model:
        parts = []
        for field, value in model:
            content = _graph(value) if field == GRAPH and isinstance(value, Message) else _content(value)
            parts.append(_field(field, content))
    return b"".join(parts)


def _graph(graph: Message) -> bytes:
    parts = [_field(_INITIALIZER, _tensor())]
    for field, value in graph:
        is_resize = field == _NODE and isinstance(value, Message) and _resizes_axes(value)
        parts.append(_field(field, b"".join(_twice(value)) if is_resize else _content(value)))  # type: ignore[arg-type]
    return b"".join(parts)


def _resizes_axes(node: Message) -> bool:
    return node.text(_OP_TYPE) == "Resize" and any(a.text(_NAME) == "axes" for a in node.messages(_ATTRIBUTE))


def _twice(node: Message) -> Iterator[bytes]:
    """The node with its picture and the scales as inputs."""
    inputs = node.messages(_INPUT)
    for name in (inputs[0].content(), b"", _SCALES.encode()):
        yield _field(_INPUT, name)
    for field, value in node:
        newer = field == _ATTRIBUTE and isinstance(value, Message) and value.text(_NAME) in _SINCE_18
        if field != _INPUT and not newer:
            yield _field(field, _content(value))


def _tensor() -> bytes:
    dims, float32, name, raw = 1, 2, 8, 9  # fields of a tensor
    values = struct.pack("<4f", 1, 1, 2, 2)
    return _field(dims, 4) + _field(float32, 1) + _field(name, _SCALES.encode()) + _field(raw, values)


def _content(value: int | Message) -> int | bytes:
    return value if isinstance(value, int) else value.content()


def _field(number: int, content: int | bytes) -> bytes:
    if isinstance(content, int):
        return _varint(number << 3) + _varint(content)
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
