"""Several processes on one bundle, one store, one folder; a clock that is set back."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgediffusion.engines.store import Store
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.metadata import read_parameters

from ..engines.conftest import RECIPE
from .commands import COMMAND
from .conftest import Opened

BUILD = """
import json, sys, time
from pathlib import Path
from edgediffusion.engines.recipe import Recipe
from edgediffusion.engines.store import Store

def build():
    Path(sys.argv[1], f"built-{time.monotonic_ns()}").touch()
    time.sleep(0.1)
    return bytes(1 << 20)

recipe = Recipe.from_record(json.loads(sys.argv[2]))
print(Store(Path(sys.argv[1])).get_or_build(recipe, build, by="a test").built.sha256)
"""


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)])
def test_one_bundle_and_one_folder_for_pictures(count: int, tmp_path: Path) -> None:
    """Each has its own names, and the picture that it would have drawn alone."""
    arguments = ["generate", "a car", "--num-inference-steps", "1", "--num-images", "2", "--seed", "1", "-o", "x.png"]
    processes = [
        subprocess.Popen(
            [*COMMAND, *arguments], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    names = []
    for process in processes:
        out, err = process.communicate(timeout=100)
        assert (process.returncode, err) == (0, "")
        names += out.split()
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    assert len(set(names)) == 2 * count
    for seed in (1, 2):
        same = {path.read_bytes() for path in tmp_path.iterdir() if read_parameters(path).seed == seed}
        assert len(same) == 1, seed


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow), 8])
def test_one_store(count: int, tmp_path: Path) -> None:
    """One builds, the others wait and take what it made."""
    store = Store(tmp_path / "engines")
    store.folder.mkdir()
    command = [sys.executable, "-c", BUILD, str(store.folder), json.dumps(RECIPE.to_record())]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(count)]
    said = {process.communicate(timeout=100) for process in processes}
    assert len(said) == 1
    assert len(list(store.folder.glob("built-*"))) == 1
    (entry,) = store.entries()
    assert said == {(f"{entry.built.sha256}\n", "")}


@pytest.mark.slow
def test_eight_runs_on_one_folder(tmp_path: Path) -> None:
    """One works, the others say so and change nothing."""
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a car", "num_inference_steps": 3, "seed": 1}\n' * 4)
    command = [*COMMAND, "run", "jobs.jsonl"]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True) for _ in range(8)]
    said = [(*process.communicate(timeout=100), process.returncode) for process in processes]
    assert sorted(status for _, _, status in said) == [0] + [2] * 7
    assert all("another edgediffusion run is at work there" in err for _, err, status in said if status)
    assert [json.loads(line)["state"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()] == [
        "started",
        "done",
    ] * 4


def test_a_clock_that_is_set_back(
    bundle_path: Path, opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By thirty years between two starts: nothing is drawn twice, no time that is reported is negative."""
    (tmp_path / "jobs.jsonl").write_text('{"prompt": "a car"}\n{"prompt": "an apple"}\nnonsense\n')
    out = tmp_path / "out"
    out.mkdir()
    status = tmp_path / "status.json"
    arguments = [
        "run",
        str(tmp_path / "jobs.jsonl"),
        "-o",
        str(out),
        "--bundle",
        str(bundle_path),
        "--status",
        str(status),
    ]
    assert main(arguments) == 1
    pictures = {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}

    class Earlier(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Earlier:
            return cls(1996, 1, 1, tzinfo=tz)

    for module in ("journal", "monitor"):
        monkeypatch.setattr(f"edgediffusion.runtime.{module}.datetime", Earlier)
    monkeypatch.setattr(time, "time", lambda: 820454400.0)
    os.utime(tmp_path / "jobs.jsonl", (820454400, 820454400))
    with (tmp_path / "jobs.jsonl").open("a") as file:
        file.write('{"prompt": "a rocket"}\n')
    calls = len(opened.calls)
    assert main(arguments) == 1
    assert sum(name == "vae_decoder" for name, _ in opened.calls[calls:]) == 1
    assert pictures.items() <= {path.name: path.stat().st_mtime_ns for path in out.glob("*.png")}.items()
    journal = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    assert [record["line"] for record in journal if record["state"] == "done"] == [1, 2, 4]
    assert journal[-1]["at"].startswith("1996-")
    assert all(record.get("seconds", 0) >= 0 for record in journal)
    assert json.loads(status.read_text())["seconds"] >= 0
