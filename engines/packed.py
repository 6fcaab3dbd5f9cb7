"""A file or folder inside a pack, read where it lies."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Packed:
    """What lies under `name` in the file `archive`, with the part of pathlib's interface that reading takes.

    `members` are the contents of all its files, views of the mapped archive; `offsets` is where in it they begin.
    """

    archive: Path
    members: Mapping[str, memoryview] = field(repr=False, hash=False, compare=False)
    offsets: Mapping[str, int] = field(repr=False, hash=False, compare=False)
    name: str = ""

    def __truediv__(self, name: str) -> Packed:
        return Packed(self.archive, self.members, self.offsets, f"{self.name}/{name}".lstrip("/"))

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}".rstrip("/")

    @property
    def parent(self) -> Packed:
        """The folder that it is in."""
        return Packed(self.archive, self.members, self.offsets, self.name.rpartition("/")[0])

    @property
    def view(self) -> memoryview:
        """The content of the file.

        Raises:
            FileNotFoundError: there is no such file in the pack.
        """
        if self.name not in self.members:
            raise FileNotFoundError(f"no {self.name} in {self.archive}")
        return self.members[self.name]

    def exists(self) -> bool:
        """Whether there is such a file; folders have no entries of their own."""
        return self.name in self.members

    def read_bytes(self) -> bytes:
        """The content, copied; `view` for the errors."""
        return bytes(self.view)

    def read_text(self, encoding: str) -> str:
        """The content as text; `view` for the errors."""
        return str(self.view, encoding)

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """For reading bytes. FileNotFoundError where there is no such file."""
        size = len(self.view)
        return io.BufferedReader(_Window(self.archive, self.offsets[self.name], size))


File = Path | Packed


def size_of(file: File) -> int:
    """In bytes; OSError where there is none."""
    return file.stat().st_size if isinstance(file, Path) else len(file.view)


class _Window(io.RawIOBase):
    """A part of a file, read and not mapped: pages that are mapped count as memory of the process."""

    def __init__(self, archive: Path, start: int, size: int) -> None:
        self._file = archive.open("rb", buffering=0)
        self._start, self._size = start, size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}, before the start")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._position)
        left = max(0, self._size - self._position)
        count = self._file.readinto(memoryview(buffer)[:left])
        self._position += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
