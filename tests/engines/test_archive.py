from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from edgediffusion.engines.archive import export_engines, import_engines
from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.store import DamagedEngine, Entry, Store

from .conftest import RECIPE


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    store = Store(tmp_path / "there")
    recipes = (RECIPE, replace(RECIPE, precision="float32"))
    return [store.get_or_build(recipe, recipe.precision.encode, by="") for recipe in recipes]


def test_engines_arrive_as_they_left(entries: list[Entry], tmp_path: Path) -> None:
    export_engines(entries, tmp_path / "engines.tar")
    store = Store(tmp_path / "here")
    imported = import_engines(tmp_path / "engines.tar", store)
    assert imported == sorted(imported, key=lambda entry: entry.plan.name)
    arrived = {entry.recipe: entry.read() for entry in store.entries()}
    assert arrived == {entry.recipe: entry.read() for entry in entries}


def test_nothing_is_overwritten(entries: list[Entry], tmp_path: Path) -> None:
    (tmp_path / "engines.tar").touch()
    with pytest.raises(UsageError, match=r"engines\.tar: is there already; choose another name"):
        export_engines(entries, tmp_path / "engines.tar")


def test_a_damaged_engine_is_not_exported(entries: list[Entry], tmp_path: Path) -> None:
    entries[1].plan.write_bytes(b"")
    with pytest.raises(DamagedEngine, match="truncated, 0 bytes"):
        export_engines(entries, tmp_path / "engines.tar")
    assert {path.name for path in tmp_path.iterdir()} == {"there"}


@pytest.mark.parametrize("name", ["../evil.plan", "/evil.plan", "a/b.plan", "evil.py"])
def test_a_file_that_reaches_out_of_the_store(name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "engines.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(UsageError, match=f"holds '{name}', which is no part of an engine; do not use it"):
        import_engines(tmp_path / "engines.tar", Store(tmp_path / "here"))
    assert not (tmp_path / "here").exists()


def test_a_link_is_no_part_of_an_engine(tmp_path: Path) -> None:
    link = tarfile.TarInfo("a.plan")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "engines.tar", "w") as archive:
        archive.addfile(link)
    with pytest.raises(UsageError, match=r"holds 'a\.plan'"):
        import_engines(tmp_path / "engines.tar", Store(tmp_path / "here"))


def test_no_file_of_engines(entries: list[Entry], tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("not a tar file")
    with pytest.raises(UsageError, match=r"text\.tar: no file of engines \(.*\); export them again"):
        import_engines(tmp_path / "text.tar", Store(tmp_path / "here"))
    with tarfile.open(tmp_path / "half.tar", "w") as archive:
        archive.add(entries[0].sidecar, entries[0].sidecar.name)
    with pytest.raises(UsageError, match=r"half\.tar: a damaged engine \(.*cannot be read.*\); export them again"):
        import_engines(tmp_path / "half.tar", Store(tmp_path / "here"))
