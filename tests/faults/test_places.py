"""Folders that cannot be written, names that are long or foreign, a locale that knows neither."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgediffusion.runtime.packs.write import pack_bundle
from edgediffusion.runtime.pipeline import BUILTIN

PROGRAM = """
import sys
from edgediffusion.runtime.cli import main
arguments = sys.argv[1:]
while arguments:
    end = arguments.index(";")
    print("status", main(arguments[:end]), flush=True)
    arguments = arguments[end + 1 :]
"""
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24


def give_up_powers() -> None:
    """Modes of files count for root, too."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


def run(*commands: list[str | Path], cwd: Path, **environment: str | Path) -> subprocess.CompletedProcess[str]:
    arguments = [str(argument) for command in commands for argument in (*command, ";")]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=cwd,
        env=os.environ | {name: str(value) for name, value in environment.items()},
        preexec_fn=give_up_powers,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities")
def test_read_only_folders_with_foreign_names_in_the_locale_c(tmp_path: Path) -> None:
    home = tmp_path / "it's a Büro, 事務所" / ("long " * 40)
    home.mkdir(parents=True)
    pack, folder, out = home / "mödel.edz", home / "bundle", tmp_path / "out put"
    out.mkdir()
    pack_bundle(BUILTIN, pack)
    shutil.copytree(BUILTIN, folder)
    for path in (folder, *folder.rglob("*"), pack, home):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        draw: list[str | Path] = ["generate", "a red äpple", "--num-inference-steps", "1", "--seed", "1"]
        done = run(
            [*draw, "--bundle", pack, "-o", out / "päck.png"],
            [*draw, "--bundle", folder, "-o", out / "földer.png"],
            [*draw, "--bundle", pack, "-o", home / "apple.png"],
            ["unpack", pack, "-o", home / "there"],
            ["pack", folder, "-o", home / "again.edz"],
            cwd=home,
            HOME=home,
            LC_ALL="C",
        )
        assert [line for line in done.stdout.splitlines() if "status" in line] == [
            f"status {status}" for status in (0, 0, 2, 2, 2)
        ], done
        assert len(done.stderr.splitlines()) == 3, done.stderr
        assert all("cannot be written: Permission denied" in line for line in done.stderr.splitlines())
        assert (out / "päck.png").read_bytes() == (out / "földer.png").read_bytes()
    finally:
        for path in (home, folder, *folder.rglob("*")):
            path.chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities")
def test_powers_are_given_up(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    command = [sys.executable, "-c", "open('a', 'w')"]
    done = subprocess.run(command, cwd=tmp_path, preexec_fn=give_up_powers, capture_output=True, text=True)
    tmp_path.chmod(0o755)
    assert "PermissionError" in done.stderr
