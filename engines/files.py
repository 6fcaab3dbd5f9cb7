"""Files: their digests, and how one is written so that it is there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .packed import File

PARTIAL = ".partial"
PIECE = 1 << 20  # bytes


def read_pieces(path: File, start: int = 0, size: int = sys.maxsize) -> Iterator[bytes]:
    """What a file has from `start` on, `size` bytes of it at most, `PIECE` at a time."""
    with path.open("rb") as file:
        file.seek(start)
        while size and (piece := file.read(min(size, PIECE))):
            size -= len(piece)
            yield piece


def sha256_of(path: File) -> str:
    """The digest of a file."""
    digest = hashlib.sha256()
    for piece in read_pieces(path):
        digest.update(piece)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk when this returns: a power cut finds them there.

    Windows cannot be asked that of a folder.
    """
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write what is to become `path`: it is renamed at the end, and taken away where that is not reached."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}{path.suffix}{PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold the file `lock`, which the system lets go when a process dies. It is taken away when the work is done.

    Who waited for it must look whether the work is done: after that, more than one may hold it.
    """
    import filelock

    with filelock.FileLock(lock):
        yield
        with contextlib.suppress(OSError):  # another process has it open, on Windows
            lock.unlink()
