"""The exceptions of edgediffusion.

    EdgeDiffusionError
    ├── UsageError (ValueError)             an argument that cannot be used
    │   └── UnknownName (ValueError)        a name that is in no table; the message lists the known ones
    ├── BackendUnavailable (ImportError)    a backend, device or extra that is not installed or does not work here
    ├── GraphMismatch (ValueError)          arrays that do not fit a graph's inputs or outputs
    ├── EngineError (RuntimeError)          a graph that fails while it runs
    │   └── OutOfMemory (MemoryError)       for want of the device's memory: less at once may do
    ├── BundleError (ValueError)            a bundle that is missing, incomplete, altered or too new
    ├── RunCancelled (RuntimeError)         a run that was told to stop before its end
    └── ExportError (ValueError)            a checkpoint that cannot become a bundle

Every message is one line: which, got, wanted, what to do. The command line prints it and exits with status 2.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def one_line(message: object) -> str:
    """A message of another library's, which may have several."""
    return " ".join(str(message).split())


class EdgeDiffusionError(Exception):
    """Base of every error that edgediffusion raises on purpose. It can be pickled, whatever its constructor takes."""

    def __init__(self, message: object = "") -> None:
        super().__init__(" ".join(str(message).splitlines()))  # files have names of several

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, vars(self))


def _restore(kind: type[EdgeDiffusionError], arguments: tuple[object, ...], state: dict[str, Any]) -> object:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error


class UsageError(EdgeDiffusionError, ValueError):
    """An argument that cannot be used."""


class UnknownName(UsageError):
    """A name that is in no table."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")


class BackendUnavailable(EdgeDiffusionError, ImportError):
    """A backend, device or extra that is not installed or does not work on this machine.

    `reason` says why, `remedy` is the one command that mends it.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy


class GraphMismatch(EdgeDiffusionError, ValueError):
    """Arrays that do not fit a graph's inputs or outputs."""


class EngineError(EdgeDiffusionError, RuntimeError):
    """A graph that fails while it runs."""


class OutOfMemory(EngineError, MemoryError):
    """A graph that fails for want of memory."""


class BundleError(EdgeDiffusionError, ValueError):
    """A bundle that is missing, incomplete, altered or too new."""


class RunCancelled(EdgeDiffusionError, RuntimeError):
    """A run that was told to stop before its end."""


class ExportError(EdgeDiffusionError, ValueError):
    """A checkpoint that cannot become a bundle: not readable, not complete, or its graphs disagree with torch."""
