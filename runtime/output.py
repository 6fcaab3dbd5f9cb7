"""Where pictures are written: under a name that was free, all at once, or not at all."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.files import sync

from .metadata import format_of

UNFINISHED = ".edgediffusion-"


class CannotWrite(UsageError):
    """A picture that could not be written: no room, no permission."""


class Saveable(Protocol):
    """A picture that writes itself to a file of the format that its name says."""

    def save(self, path: Path) -> None: ...  # noqa: D102


def default_path(prompt: str) -> Path:
    """ "A red apple, 3d" -> a-red-apple-3d.png"""
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")
    return Path(f"{words[:50].rstrip('-') or 'picture'}.png")


class Output:
    """The files of one run. Nothing that exists is overwritten, except with `force`.

    One picture takes the name `path`, or NAME-1.png, NAME-2.png, ... when that is taken; `several` are numbered from 1.
    """

    def __init__(self, path: Path, *, several: bool, force: bool) -> None:
        """Check that `path` can be written.

        Raises:
            UsageError: it does not end as one of `metadata.FORMATS` does, or cannot be written (`CannotWrite`).
        """
        if os.path.isdir(path):
            raise UsageError(f"output {path} is a folder; name a file, such as {path / 'apple.png'}")
        format_of(path)
        if not os.path.isdir(path.parent):
            raise UsageError(f"output {path}: there is no folder {path.parent}; make it first")
        self.path = path
        self._force = force
        self._names = self._numbered(several)
        self._unfinished = path.with_name(f"{UNFINISHED}{secrets.token_hex(8)}{path.suffix}")
        try:
            with contextlib.suppress(FileNotFoundError):
                path.lstat()
            self._unfinished.touch(exist_ok=False)
            self._unfinished.unlink()
        except OSError as error:
            raise self._cannot_write(error) from None

    def write(self, picture: Saveable) -> Path:
        """Write `picture` under the next name and return it.

        Raises:
            CannotWrite: nothing is left behind.
        """
        try:
            picture.save(self._unfinished)
            sync(self._unfinished)  # else a power cut may leave the name without the picture
            if self._force:
                return self._unfinished.replace(next(self._names))
            path = next(filter(_reserve, self._names))
            try:
                return self._unfinished.replace(path)
            except BaseException:
                path.unlink()
                raise
        except OSError as error:
            raise self._cannot_write(error) from None
        finally:
            self._unfinished.unlink(missing_ok=True)

    def _numbered(self, several: bool) -> Iterator[Path]:
        if not several:
            yield self.path
        for number in itertools.count(1):
            yield self.path.with_stem(f"{self.path.stem}-{number}")

    def _cannot_write(self, error: OSError) -> CannotWrite:
        return CannotWrite(f"output {self.path} cannot be written: {error.strerror or error}")


def _reserve(path: Path) -> bool:
    """Make the file `path` unless there is one: of two processes, one gets it."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True
