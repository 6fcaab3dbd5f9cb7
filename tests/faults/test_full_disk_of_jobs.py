"""No space left while pictures, journals, engines or bundles are written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.store import Store
from edgediffusion.runtime.cli import main

from ..engines.conftest import RECIPE
from .commands import COMMAND
from .conftest import Opened
from .disks import full_at, largest_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no limit of a file's size")
Capture = pytest.CaptureFixture[str]
JOBS = [{"prompt": "a car", "num_images": 2, "seed": 1, "num_inference_steps": 1}, {"prompt": "an apple", "seed": 2}]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".png"}


def one_line(capsys: Capture) -> None:
    """After the log."""
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "edgediffusion: " in line] == lines[-1:]
    assert "cannot be written: " in lines[-1]


def test_generate_at_any_size(bundle_path: Path, opened: Opened, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["generate", "a car", "--seed", "1", "--bundle", str(bundle_path), "-o", str(out / "a.png")]
    assert main(arguments) == 0
    wanted = pictures(out)["a.png"]
    (out / "a.png").unlink()
    for limit in range(0, len(wanted), len(wanted) // 10):
        capsys.readouterr()
        with largest_file(limit):
            assert main(arguments) == 2
        one_line(capsys)
        assert list(out.iterdir()) == []
    assert main(arguments) == 0
    assert pictures(out) == {"a.png": wanted}


@pytest.mark.parametrize("name", ["fsync", "replace", "touch"])
def test_each_place_where_run_writes(
    name: str, bundle_path: Path, opened: Opened, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that could not be written is given back, nothing of it is left, and the next start finishes."""
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, JOBS)))

    def run(out: Path) -> int:
        out.mkdir(exist_ok=True)
        return main(["run", str(tmp_path / "jobs.jsonl"), "-o", str(out), "--bundle", str(bundle_path)])

    assert run(tmp_path / "wanted") == 0
    wanted, failed = pictures(tmp_path / "wanted"), 0
    for call in range(1, 40):
        capsys.readouterr()
        out = tmp_path / f"out-{call}"
        with full_at(call, name, monkeypatch) as calls:
            status = run(out)
        if calls[0] < call:
            assert status == 0
            break
        assert status == 2, call
        one_line(capsys)
        assert pictures(out).items() <= wanted.items(), call
        failed += 1
        assert run(out) == 0
        assert pictures(out) == wanted, call
        assert not list(out.glob(".edgediffusion-*"))
    assert failed >= {"fsync": 10, "replace": 3, "touch": 4}[name]


def test_an_engine_at_any_size(tmp_path: Path) -> None:
    store = Store(tmp_path / "engines")
    for limit in range(0, 10_000, 1000):
        with largest_file(limit), pytest.raises(UsageError, match="cannot be written: File too large"):
            store.get_or_build(RECIPE, lambda: bytes(10_000), by="a test")
        assert list(store.entries()) == []
        assert store.leftovers() == []
    assert store.get_or_build(RECIPE, lambda: bytes(10_000), by="a test").read() == bytes(10_000)


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_each_place_where_an_engine_is_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (1, 2, 3):
        store = Store(tmp_path / str(call))
        with full_at(call, name, monkeypatch):
            if call == 3:
                store.get_or_build(RECIPE, lambda: b"plan", by="a test")
                break
            with pytest.raises(UsageError, match="cannot be written: No space left on device"):
                store.get_or_build(RECIPE, lambda: b"plan", by="a test")
        assert list(store.entries()) == []
        assert store.get_or_build(RECIPE, lambda: b"plan", by="a test").read() == b"plan"
        assert store.leftovers() == []


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 20_000, 100_000, 400_000])
def test_an_export(limit: int, checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    """Its components are written by processes of their own, which have the limit, too."""
    import resource

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [*COMMAND, "export", str(checkpoints("sd")), str(tmp_path / "out")]
    done = subprocess.run(command, preexec_fn=limited, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search("File too large|No usable temporary directory", done.stderr.splitlines()[-1]), done.stderr
    assert list(tmp_path.iterdir()) == []
