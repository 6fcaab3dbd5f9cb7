"""What goes wrong on machines that nobody watches. CI tries a sample of each; `pytest -m slow` tries the rest."""

from __future__ import annotations

from pathlib import Path

from ..runtime.conftest import Opened, bundle_path, clip_tokenizer, opened
from ..runtime.packs.conftest import pack_path

__all__ = ["Opened", "bundle_path", "clip_tokenizer", "opened", "pack_path"]


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files below it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
