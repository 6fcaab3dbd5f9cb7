"""Figures on the screen and in a file, with what they depend on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.files import replacing
from edgediffusion.runtime.doctor import examine
from edgediffusion.runtime.tables import make_console

from .figures import Figure

Facts = dict[str, Any]
_DECIMALS = {"us": 1, "s": 3, "ms": 1, "MB": 0, "x": 2}
_PACKAGES = ("onnxruntime", "tokenizers", "pillow", "torch", "diffusers", "transformers", "accelerate")


def environment(cores: int) -> Facts:
    """The machine, the versions, and how busy it is: call it before measuring. `cores` are those to be used."""
    machine = dataclasses.asdict(examine())
    machine["versions"] |= installed_versions(_PACKAGES)
    return machine | {"release": os.uname().release, "cores_used": cores, "load_average": os.getloadavg()[0]}


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    versions = {}
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def check_new_file(path: Path | None, option: str = "json") -> None:
    """Before minutes are spent on what goes there.

    Raises:
        UsageError: `path` exists, or its folder doesn't.
    """
    if path is not None and path.exists():
        raise UsageError(f"{option} {path} exists; name a new file")
    if path is not None and not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}; make it first")


def write_json(path: Path, settings: Facts, environment: Facts, figures: Iterable[Figure]) -> None:
    """All of a benchmark, with the value of each run.

    Raises:
        UsageError: `path` cannot be written; nothing is left behind.
    """
    content = {"settings": settings, "environment": environment, "figures": [figure.to_json() for figure in figures]}
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write all of a file, or nothing.

    Raises:
        UsageError: `path` cannot be written; nothing is left behind.
    """
    try:
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def show(settings: Facts, environment: Facts, figures: Iterable[Figure]) -> None:
    """What was measured where, and a line for each figure."""
    from rich.table import Table

    out = make_console()
    out.print(", ".join(f"{name} {value}" for name, value in settings.items()))
    out.print(f"{environment['cpu']}, {environment['cores_used']} of {environment['threads']} cores")
    out.print(", ".join(f"{name} {version}" for name, version in environment["versions"].items()))
    out.print(f"load average before: {environment['load_average']:.1f}\n")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for header in ("", "median", "min", "max", "unit", "runs"):
        table.add_column(header, justify="right" if header in ("median", "min", "max", "runs") else "left")
    for figure in figures:
        table.add_row(figure.name, *_summary(figure), figure.unit, str(len(figure.values)))
    out.print(table)


def _summary(figure: Figure) -> list[str]:
    decimals = _DECIMALS[figure.unit]
    return [f"{value:.{decimals}f}" for value in (figure.median, min(figure.values), max(figure.values))]
