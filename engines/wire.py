"""The wire format of protocol buffers, https://protobuf.dev/programming-guides/encoding, read in place and rewritten.

Of an ONNX model whose weights are beside it that is enough: no schema, no library, and nothing read that is not asked
for.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}


class Fixed(bytes):
    """A number of four or eight bytes, such as a float, as it is in a file."""


@dataclass(frozen=True)
class Message:
    """A stretch of a file. Iterating gives the fields: number, and what is in it."""

    file: BinaryIO
    start: int
    end: int

    def __iter__(self) -> Iterator[tuple[int, int | Fixed | Message]]:
        position = self.start
        while position < self.end:
            self.file.seek(position)
            tag = self._varint()
            value: int | Fixed | Message
            if (kind := tag & 7) == _VARINT:
                value, position = self._varint(), self.file.tell()
            elif kind == _BYTES:
                length, start = self._varint(), self.file.tell()
                position = start + length
                value = Message(self.file, start, position)
            elif kind in _FIXED:
                position = self.file.tell() + _FIXED[kind]
                value = Fixed(self.file.read(_FIXED[kind]))
            else:
                raise ValueError(f"wire type {kind}")
            if position > self.end:
                raise ValueError("cut short")
            yield tag >> 3, value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.file.read(1)
            if not byte or shift > 63:
                raise ValueError("cut short")
            value |= (byte[0] & 0x7F) << shift
            if byte[0] < 0x80:
                return value
            shift += 7

    def messages(self, number: int) -> list[Message]:
        """The fields of this `number` that are messages or text."""
        return [value for field, value in self if field == number and isinstance(value, Message)]

    def numbers(self, number: int) -> list[int]:
        """The fields of this `number` that are numbers."""
        return [value for field, value in self if field == number and isinstance(value, int)]

    def number(self, number: int) -> int:
        """The last field of this `number`, 0 where there is none."""
        return ([0, *self.numbers(number)])[-1]

    def text(self, number: int) -> str:
        """The last field of this `number` as text, empty where there is none."""
        for message in reversed(self.messages(number)):
            return message.content().decode()
        return ""

    def content(self) -> bytes:
        """The stretch itself."""
        self.file.seek(self.start)
        return self.file.read(self.end - self.start)


def message_of(content: bytes) -> Message:
    """The message that is `content`."""
    return Message(io.BytesIO(content), 0, len(content))


def write_field(number: int, content: int | bytes | Message) -> bytes:
    """A field as it is in a file: of a number, of text or a message's content, or one that was read."""
    if isinstance(content, int):
        return _to_varint(number << 3 | _VARINT) + _to_varint(content)
    if isinstance(content, Fixed):
        return _to_varint(number << 3 | (_FIXED32 if len(content) == 4 else _FIXED64)) + content
    if isinstance(content, Message):
        content = content.content()
    return _to_varint(number << 3 | _BYTES) + _to_varint(len(content)) + content


def _to_varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def rewrite(message: Message, path: Sequence[int], change: Callable[[Message], bytes]) -> bytes:
    """`message` with what `change` makes of the messages that the field numbers `path` lead to."""
    if not path:
        return change(message)
    first, *rest = path
    return b"".join(
        write_field(number, rewrite(value, rest, change) if number == first and isinstance(value, Message) else value)
        for number, value in message
    )
