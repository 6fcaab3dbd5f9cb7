"""Where weights come from, a module a kind."""

from __future__ import annotations

from pathlib import Path

from edgediffusion.engines.errors import ExportError

from .base import MODEL_INDEX, Config, EditedPart, Part, Source, read_json, select
from .folder import FolderPart, open_folder

__all__ = ["MODEL_INDEX", "Config", "EditedPart", "FolderPart", "Part", "Source", "open_source", "read_json", "select"]


def open_source(source: Path) -> Source:
    """Look at the checkpoint `source`; no weights are read.

    Raises:
        ExportError: there is none.
    """
    if not source.is_dir():
        raise ExportError(f"{source}: no such folder; wanted a checkpoint in diffusers' layout, with {MODEL_INDEX}")
    return open_folder(source)
