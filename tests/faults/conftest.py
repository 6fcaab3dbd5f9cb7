"""What goes wrong on machines that nobody watches. CI tries a sample of each; `pytest -m slow` tries the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgediffusion.runtime.packs.write import pack_bundle

from ..runtime.conftest import Opened, bundle_path, clip_tokenizer, opened

__all__ = ["Opened", "bundle_path", "clip_tokenizer", "opened"]


@pytest.fixture
def pack_path(bundle_path: Path, tmp_path: Path) -> Path:
    """A pack of the bundle whose graphs are Python functions."""
    pack_bundle(bundle_path, tmp_path / "model.edz")
    return tmp_path / "model.edz"


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files below it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
