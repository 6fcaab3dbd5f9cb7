"""No space left, wherever something is written: one line, nothing half-written, and the same command finishes later."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

from edgediffusion.engines.errors import BundleError, UsageError
from edgediffusion.engines.files import PARTIAL
from edgediffusion.runtime.manifest import Manifest
from edgediffusion.runtime.packs.read import open_pack
from edgediffusion.runtime.packs.unpack import unpack
from edgediffusion.runtime.packs.write import pack_bundle

from .conftest import contents
from .disks import full_at, largest_file

LINE = r"cannot be written: (File too large|No space left on device)"


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size")
def test_packing_stops_at_any_size(bundle_path: Path, pack_path: Path, tmp_path: Path) -> None:
    size = pack_path.stat().st_size
    for limit in range(0, size, size // 40):
        with largest_file(limit), pytest.raises(UsageError, match=rf"full\.edz {LINE}"):
            pack_bundle(bundle_path, tmp_path / "full.edz")
        assert not (tmp_path / "full.edz").exists()
        assert not list(tmp_path.glob(f"*{PARTIAL}"))
    pack_bundle(bundle_path, tmp_path / "full.edz")
    assert (tmp_path / "full.edz").read_bytes() == pack_path.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size")
def test_unpacking_stops_at_any_size(bundle_path: Path, pack_path: Path, tmp_path: Path) -> None:
    largest = max(len(content) for content in contents(bundle_path).values())
    for limit in range(0, largest, largest // 20):
        with largest_file(limit), pytest.raises(UsageError, match=rf"there {LINE}; the same command goes on where"):
            unpack(open_pack(pack_path), tmp_path / "there")
        with pytest.raises(BundleError, match="no bundle here"):
            Manifest.read(tmp_path / "there")
        assert not list((tmp_path / "there").rglob(f"*{PARTIAL}"))
    unpack(open_pack(pack_path), tmp_path / "there")
    assert contents(tmp_path / "there") == contents(bundle_path)


@pytest.mark.parametrize("name", ["fsync", "replace", "mkdir"])
def test_each_call_that_takes_space(
    name: str, bundle_path: Path, pack_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 0
    for call in (1, 2, 5, 9, 14, 15, 16, 17):
        there = tmp_path / f"there-{call}"
        with full_at(call, name, monkeypatch), contextlib.suppress(UsageError):
            unpack(open_pack(pack_path), there)
            break
        with pytest.raises(BundleError, match="no bundle here"):
            Manifest.read(there)
        failed += 1
        unpack(open_pack(pack_path), there)
        assert contents(there) == contents(bundle_path)
    assert failed >= 2
    if name != "mkdir":
        with (
            full_at(1, name, monkeypatch),
            pytest.raises(UsageError, match=r"full\.edz cannot be written: No space left on device"),
        ):
            pack_bundle(bundle_path, tmp_path / "full.edz")
        assert not (tmp_path / "full.edz").exists()
        assert not list(tmp_path.glob(f"*{PARTIAL}"))
