"""Packs of the bundle whose graphs are Python functions, and zip files that claim to be packs."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from edgediffusion.runtime.packs.record import RECORD
from edgediffusion.runtime.packs.write import pack_bundle

CONTENT = {"edgediffusion.json": b"{}", "unet/config.json": b"{}\n"}
Forge = Callable[..., Path]


@pytest.fixture
def pack_path(bundle_path: Path, tmp_path: Path) -> Path:
    """A pack of the folder `bundle_path`."""
    pack_bundle(bundle_path, tmp_path / "model.edz")
    return tmp_path / "model.edz"


def record_of(contents: Mapping[str, bytes], **changes: Any) -> bytes:
    """That of a pack with these files."""
    listed = {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in contents.items()}
    return json.dumps({"schema": 1, "version": "0", "files": listed} | changes).encode()


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    """Writes forged.edz: `members` as told, or else those of CONTENT and their record, changed by `record`."""

    def forged(
        members: list[tuple[str | zipfile.ZipInfo, bytes]] | None = None,
        *,
        record: bytes | None = None,
        kind: int = zipfile.ZIP_STORED,
    ) -> Path:
        path = tmp_path / "forged.edz"
        with zipfile.ZipFile(path, "w", kind) as archive:
            archive.writestr(RECORD, record_of(CONTENT) if record is None else record)
            for name, content in CONTENT.items() if members is None else members:
                archive.writestr(name, content)
        return path

    return forged


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files below it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
