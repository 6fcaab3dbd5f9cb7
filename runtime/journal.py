"""What became of each job of `edgediffusion run`: a line for each event, on the disk before anything else happens."""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.files import sync
from edgediffusion.engines.json_object import parse_object

STARTED, DONE, RETRY, FAILED, RETURNED = "started", "done", "retry", "failed", "returned"
STATES = (STARTED, DONE, RETRY, FAILED, RETURNED)


@dataclass(frozen=True)
class Job:
    """A line of the file `path`, as it is written there. One that was changed is another job."""

    path: Path
    line: int
    text: str

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.path.name}:{self.line}"

    @functools.cached_property
    def key(self) -> tuple[str, int, str]:
        """What it is known by in a journal."""
        return self.path.name, self.line, hashlib.sha256(self.text.encode()).hexdigest()[:16]


class Journal:
    """The file `path`, read as it is opened. A last line that a power cut left unfinished is taken away.

    Its times are for people: nothing is decided by them, so a clock may be set as it likes.
    """

    def __init__(self, path: Path) -> None:
        """Read it, or begin it.

        Raises:
            UsageError: it cannot be read or written, or a line of it is damaged.
        """
        self.path = path
        self._attempts: dict[tuple[str, int, str], int] = {}
        self._last: dict[tuple[str, int, str], str] = {}
        try:
            path.touch()
            self._read()
            sync(path.parent)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise self._cannot_write(error) from None

    def is_over(self, job: Job) -> bool:
        """Whether it is done, or failed for good."""
        return self._last.get(job.key) in (DONE, FAILED)

    def has_failed(self, job: Job) -> bool:
        """Whether it was given up."""
        return self._last.get(job.key) == FAILED

    def attempts(self, job: Job) -> int:
        """How often it was begun, but for those times when it was given back."""
        return self._attempts.get(job.key, 0)

    def write(self, state: str, job: Job, **facts: Any) -> None:
        """Have an event on the disk.

        Raises:
            UsageError: that is not possible.
        """
        name, line, digest = job.key
        at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = {"at": at, "state": state, "file": name, "line": line, "digest": digest} | facts
        try:
            content = (json.dumps(record, ensure_ascii=False) + "\n").encode()
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._cannot_write(error) from None
        self._count(state, job.key)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _count(self, state: str, key: tuple[str, int, str]) -> None:
        self._last[key] = state
        self._attempts[key] = self._attempts.get(key, 0) + {STARTED: 1, RETURNED: -1}.get(state, 0)

    def _read(self) -> None:
        whole, _, torn = self.path.read_bytes().rpartition(b"\n")
        if torn:
            os.truncate(self.path, len(whole) + 1 if whole else 0)
        for number, text in enumerate(whole.split(b"\n") if whole else [], 1):
            try:
                record = parse_object(text)
                state = STATES[STATES.index(record["state"])]
                self._count(state, (record["file"], record["line"], record["digest"]))
            except (KeyError, TypeError, ValueError) as error:
                raise UsageError(
                    f"{self.path}, line {number}: damaged ({error!r}); take that line away, or the file: "
                    "pictures that are there are not drawn again"
                ) from None

    def _cannot_write(self, error: OSError) -> UsageError:
        return UsageError(f"{self.path}: cannot be written: {error.strerror or error}")
