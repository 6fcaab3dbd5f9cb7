"""Disks that are full."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system lets no file grow beyond it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def full_at(call: int, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The disk is full from this call of `os.fsync`, or of a method of `Path`, on; yields how many there were."""
    holder = os if name == "fsync" else Path
    real, calls = getattr(holder, name), [0]

    def function(*arguments: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    with monkeypatch.context() as context:
        context.setattr(holder, name, function)
        yield calls
