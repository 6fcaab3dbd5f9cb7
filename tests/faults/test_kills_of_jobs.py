"""`run`, the store of engines and the export killed at any moment: what opens is right, and the next start goes on."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.files import PARTIAL
from edgediffusion.engines.store import Store
from edgediffusion.runtime.bundle import Bundle
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.golden import verify
from edgediffusion.runtime.metadata import read_parameters
from edgediffusion.runtime.pipeline import BUILTIN

from ..engines.conftest import RECIPE
from .commands import kill, waiting
from .conftest import contents

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
RUN = waiting(
    """
from edgediffusion.runtime import run_command
from edgediffusion.runtime.cli import main
from edgediffusion.engines import ort
import onnxruntime, PIL.Image, tokenizers, filelock
""",
    """
sys.stdout = sys.stderr
sys.exit(main(sys.argv[1:]))
""",
)
JOBS = [{"prompt": f"a car {k}", "num_inference_steps": 1, "width": 64, "height": 64, "seed": k} for k in range(6)]


def run(folder: Path, out: Path) -> list[str]:
    return ["run", str(folder / "jobs.jsonl"), "-o", str(out), "--retries", "1000"]


def try_run(folder: Path, seeds: range) -> int:
    """Several kills of one folder, until its jobs are done."""
    killed = 0
    (folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, JOBS)))
    wanted = folder / "wanted"
    wanted.mkdir()
    start = time.monotonic()
    assert main(run(folder, wanted)) == 0
    seconds = time.monotonic() - start
    pictures = {path.name: path.read_bytes() for path in wanted.glob("*.png")}
    out, finished = folder / "out", dict[str, int]()
    for seed in seeds:
        if len(finished) == len(JOBS) or not out.exists():
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            finished = {}
        killed += kill(seed, seconds, RUN, *run(folder, out))
        found = {path.name: path for path in out.glob("*.png") if path.name[0] != "."}
        for name, path in found.items():
            assert path.read_bytes() == pictures[name], (seed, name)
        assert finished.items() <= {name: path.stat().st_mtime_ns for name, path in found.items()}.items(), seed
        finished = {name: path.stat().st_mtime_ns for name, path in found.items()}
        journal = (out / "journal.jsonl").read_text().splitlines() if (out / "journal.jsonl").exists() else []
        done = {json.loads(line)["line"] for line in journal if '"done"' in line}
        assert {f"jobs-{line}.png" for line in done} <= found.keys(), seed
    assert main(run(folder, out)) == 0
    assert {path.name: path.read_bytes() for path in out.glob("[!.]*.png")} == pictures
    assert not list(out.glob(".edgediffusion-*"))
    assert read_parameters(out / "jobs-6.png").seed == 5
    return killed


def test_run(tmp_path: Path) -> None:
    assert try_run(tmp_path, range(2)) > 0


@pytest.mark.slow
def test_run_killed_two_hundred_times(tmp_path: Path) -> None:
    assert try_run(tmp_path, range(200)) > 120


STORE = waiting(
    """
import filelock, json, time
from pathlib import Path
from edgediffusion.engines.store import Store
from edgediffusion.engines.recipe import Recipe
""",
    """
def build():
    time.sleep(0.1)
    return bytes(4 << 20)

Store(Path(sys.argv[1])).get_or_build(Recipe.from_record(json.loads(sys.argv[2])), build, by="a test")
""",
)


def try_store(folder: Path, seeds: range) -> int:
    killed, recipe, store = 0, json.dumps(RECIPE.to_record()), Store(folder / "engines")
    for seed in seeds:
        killed += kill(seed, 0.15, STORE, store.folder, recipe)
        for entry in store.entries():
            assert entry.read() == bytes(4 << 20), seed
        entry = store.get_or_build(RECIPE, lambda: bytes(4 << 20), by="a test")
        assert entry.read() == bytes(4 << 20), seed
        assert not store.leftovers(), seed
        assert not list(store.folder.glob(f"*{PARTIAL}*")), seed
        entry.remove()
    return killed


def test_building(tmp_path: Path) -> None:
    assert try_store(tmp_path, range(2)) > 0


@pytest.mark.slow
def test_building_killed_two_hundred_times(tmp_path: Path) -> None:
    assert try_store(tmp_path, range(200)) > 120


BUILD = waiting(
    """
import filelock, tensorrt_rtx
from pathlib import Path
from edgediffusion.engines import tensorrt, tensorrt_build
from edgediffusion.engines.store import Store
from edgediffusion.runtime import engine_commands
from edgediffusion.runtime.cli import main
""",
    """
Store.of_user = lambda: Store(Path(sys.argv[1]))
sys.stdout = sys.stderr
sys.exit(main(sys.argv[2:]))
""",
)


def try_build(folder: Path, monkeypatch: pytest.MonkeyPatch, seeds: range, components: tuple[str, ...]) -> int:
    """By TensorRT-RTX, which needs no GPU for it, of the built-in model. Several kills of one store."""
    pytest.importorskip("tensorrt_rtx")
    store, killed, finished = Store(folder / "engines"), 0, dict[str, int]()
    monkeypatch.setattr(Store, "of_user", lambda: store)
    chosen = [word for name in components for word in ("--component", name)]
    command = ["build", str(BUILTIN), "--backend", "tensorrt_rtx", "--compute-capability", "8.9", *chosen]
    start = time.monotonic()
    assert main(command) == 0
    seconds = time.monotonic() - start
    for seed in seeds:
        if len(list(store.entries())) == len(components):
            shutil.rmtree(store.folder)
            finished = {}
        killed += kill(seed, seconds, BUILD, store.folder, *command)
        found = list(store.entries())
        assert all(entry.read() for entry in found), seed
        times = {entry.plan.name: entry.plan.stat().st_mtime_ns for entry in found}
        assert finished.items() <= times.items(), seed
        finished = times
    assert main(command) == 0
    assert {entry.recipe.source.component for entry in store.entries()} == set(components)
    assert not store.leftovers()
    assert not list(store.folder.glob(f"*{PARTIAL}*"))
    return killed


def test_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert try_build(tmp_path, monkeypatch, range(2), ("text_encoder",)) > 0


@pytest.mark.slow
def test_build_killed_two_hundred_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    components = ("text_encoder", "vae_encoder", "vae_decoder", "unet")
    assert try_build(tmp_path, monkeypatch, range(200), components) > 120


STAGING = waiting(
    """
import filelock, time
from pathlib import Path
from edgediffusion.export.staging import BUNDLE, staging
""",
    """
with staging(Path(sys.argv[1]), keep=sys.argv[2] == "keep") as folder:
    for k in range(20):
        (folder / BUNDLE / str(k)).write_bytes(bytes(100_000))
        time.sleep(0.006)
    (folder / BUNDLE / "edgediffusion.json").write_text("whole")
""",
)


def try_staging(folder: Path, seeds: range, place: str) -> int:
    """Into a new folder, or to fill an empty one."""
    killed, out, keeps = 0, folder / place / "out", random.Random(place)
    for seed in seeds:
        out.parent.mkdir(exist_ok=True)
        if place == "empty":
            out.mkdir()
        killed += kill(seed, 0.15, STAGING, out, keeps.choice(["keep", "new"]))
        if (out / "edgediffusion.json").exists():
            assert len([path for path in out.iterdir() if path.name[0] != "."]) == 21, seed
        else:
            refused = stage(out)  # what was being filled, or is kept: whoever started it decides
            assert not refused or "already exists; name a new folder, or remove it first" in refused, seed
        assert not [path for path in out.parent.rglob("*.unfinished") if (path / "lock").exists()], seed
        shutil.rmtree(out.parent)
    return killed


def stage(out: Path) -> str:
    """Why it is refused, or nothing."""
    from edgediffusion.export.staging import BUNDLE, staging

    try:
        with staging(out, keep=False) as work:
            (work / BUNDLE / "edgediffusion.json").write_text("again")
    except UsageError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("place", ["new", "empty"])
def test_staging_of_an_export(place: str, tmp_path: Path) -> None:
    assert try_staging(tmp_path, range(2), place) > 0


@pytest.mark.slow
@pytest.mark.parametrize("place", ["new", "empty"])
def test_staging_killed_a_hundred_times(place: str, tmp_path: Path) -> None:
    assert try_staging(tmp_path, range(100), place) > 60


EXPORT = waiting(
    """
import torch, diffusers, transformers, onnx, onnxscript, onnxruntime
from edgediffusion.export import cli
""",
    """
sys.stdout = sys.stderr
sys.exit(cli.export(sys.argv[1:]))
""",
)


@pytest.mark.slow
def test_export_killed_twenty_times(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    """Of a tiny model, with --resume; then it finishes, and what it wrote agrees with torch."""
    command, out, killed = [str(checkpoints("sd")), str(tmp_path / "out"), "--resume"], tmp_path / "out", 0
    for seed in range(20):
        killed += kill(seed, 20, EXPORT, *command)
        if out.exists():
            assert_whole(out)
            shutil.rmtree(out)
    assert main(["export", *command]) == 0
    assert_whole(out)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert killed >= 12
    assert contents(out)


def assert_whole(out: Path) -> None:
    with Bundle.open(out) as bundle:
        assert all(check.passed for check in verify(bundle))
