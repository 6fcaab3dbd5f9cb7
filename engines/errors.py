"""The exceptions of edgediffusion.

    EdgeDiffusionError
    ├── UsageError (ValueError)             an argument that cannot be used
    │   └── UnknownName (ValueError)        a name that is in no table; the message lists the known ones
    ├── BackendUnavailable (ImportError)    a backend, device or extra that is not installed or does not work here
    ├── GraphMismatch (ValueError)          feeds that do not fit a graph's inputs
    └── BundleError (ValueError)            a bundle that is missing, incomplete, altered or too new

Every message is one line: which, got, wanted, what to do. The command line prints it and exits with status 2.
"""

from __future__ import annotations

from collections.abc import Iterable


class EdgeDiffusionError(Exception):
    """Base of every error that edgediffusion raises on purpose."""


class UsageError(EdgeDiffusionError, ValueError):
    """An argument that cannot be used."""


class UnknownName(UsageError):
    """A name that is in no table."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}")


class BackendUnavailable(EdgeDiffusionError, ImportError):
    """A backend, device or extra that is not installed or does not work on this machine."""


class GraphMismatch(EdgeDiffusionError, ValueError):
    """Feeds that do not fit a graph's inputs."""


class BundleError(EdgeDiffusionError, ValueError):
    """A bundle that is missing, incomplete, altered or too new."""
