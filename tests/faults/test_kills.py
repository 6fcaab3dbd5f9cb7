"""Killed at any moment: what is there is right, and the same command finishes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.files import PARTIAL
from edgediffusion.runtime.manifest import Manifest
from edgediffusion.runtime.packs.read import open_pack
from edgediffusion.runtime.packs.unpack import unpack
from edgediffusion.runtime.packs.write import pack_bundle
from edgediffusion.runtime.pipeline import BUILTIN

from .commands import kill, waiting
from .conftest import contents

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
PROGRAM = waiting(
    """
from pathlib import Path
from edgediffusion.runtime.packs.read import open_pack
from edgediffusion.runtime.packs.unpack import unpack
from edgediffusion.runtime.packs.write import pack_bundle
import filelock
""",
    """
source, target = map(Path, sys.argv[2:])
pack_bundle(source, target) if sys.argv[1] == "pack" else unpack(open_pack(source), target)
""",
)


def test_packing(tmp_path: Path) -> None:
    try_packing(tmp_path, range(1))


def test_unpacking(tmp_path: Path) -> None:
    try_unpacking(tmp_path, range(1))


@pytest.mark.slow
def test_packing_killed_a_hundred_times(tmp_path: Path) -> None:
    assert try_packing(tmp_path, range(100)) > 60


@pytest.mark.slow
def test_unpacking_killed_a_hundred_times(tmp_path: Path) -> None:
    assert try_unpacking(tmp_path, range(100)) > 60


def try_packing(folder: Path, seeds: range) -> int:
    path, killed = folder / "model.edz", 0
    start = time.monotonic()
    pack_bundle(BUILTIN, path)
    seconds, whole = time.monotonic() - start, path.read_bytes()
    for seed in seeds:
        path.unlink()
        killed += kill(seed, seconds, PROGRAM, "pack", BUILTIN, path)
        if path.exists():
            assert path.read_bytes() == whole, seed
        else:
            pack_bundle(BUILTIN, path)
            assert path.read_bytes() == whole, seed
        assert not list(folder.glob(f"*{PARTIAL}")), seed
    return killed


def try_unpacking(folder: Path, seeds: range) -> int:
    path, wanted, killed = folder / "model.edz", contents(BUILTIN), 0
    pack_bundle(BUILTIN, path)
    start = time.monotonic()
    unpack(open_pack(path), folder / "timed")
    seconds = time.monotonic() - start
    assert contents(folder / "timed") == wanted
    for seed in seeds:
        target = folder / str(seed)
        killed += kill(seed, seconds, PROGRAM, "unpack", path, target)
        try:
            Manifest.read(target)
        except BundleError:
            pass
        else:
            assert {name: content for name, content in contents(target).items() if name in wanted} == wanted, seed
        unpack(open_pack(path), target)
        assert contents(target) == wanted, seed
    return killed


@pytest.mark.slow
def test_eight_at_once_unpack_to_one_folder(tmp_path: Path) -> None:
    """One writes, the others wait and find all of it there."""
    pack_bundle(BUILTIN, tmp_path / "model.edz")
    command = [sys.executable, "-c", PROGRAM, "unpack", str(tmp_path / "model.edz"), str(tmp_path / "there")]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(8)]
    for process in processes:
        assert process.communicate(b"\n")[1] == b""
        assert process.returncode == 0
    assert contents(tmp_path / "there") == contents(BUILTIN)
