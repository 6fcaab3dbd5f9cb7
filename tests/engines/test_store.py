from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edgediffusion.engines.errors import EngineError, UsageError
from edgediffusion.engines.recipe import Recipe
from edgediffusion.engines.store import DamagedEngine, Entry, NoEngine, Store, find_engines, read_sidecar

from .conftest import HERE, RECIPE, SOURCE

PLAN = b"a plan" * 100
REMEDY = "edgediffusion build BUNDLE"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "engines")


def must_not_build() -> bytes:
    raise AssertionError("built again")


def add(store: Store, recipe: Recipe = RECIPE) -> Entry:
    return store.get_or_build(recipe, lambda: PLAN, by="a test")


def test_what_was_built_is_found_again(store: Store) -> None:
    entry = add(store)
    assert store.get_or_build(RECIPE, must_not_build, by="") == entry
    assert find_engines([store], SOURCE, HERE, REMEDY) == [entry]
    assert list(store.entries()) == [entry]
    assert entry.read() == PLAN


def test_the_sidecar_says_it_in_words(store: Store) -> None:
    record = json.loads(add(store).sidecar.read_text())
    assert record["recipe"]["target"] == vars(HERE)
    assert record["recipe"]["profiles"] == [{"batch": [2, 2, 2], "height": [64, 64, 64], "width": [64, 64, 96]}]
    assert record["plan"]["bytes"] == len(PLAN)
    assert record["plan"]["by"] == "a test"


def test_engines_with_fixed_shapes_come_first(store: Store) -> None:
    dynamic = add(store)
    (profile,) = RECIPE.profiles
    static = add(store, replace(RECIPE, profiles=(type(profile).of({"batch": 2}),)))
    assert find_engines([store], SOURCE, HERE, REMEDY) == [static, dynamic]


def test_no_engine_at_all(store: Store) -> None:
    with pytest.raises(NoEngine, match=r"^no tensorrt engine of unet; edgediffusion build BUNDLE$"):
        find_engines([store], SOURCE, HERE, REMEDY)
    add(store)
    with pytest.raises(NoEngine, match=r"^no tensorrt engine of vae_decoder; edgediffusion build BUNDLE$"):
        find_engines([store], replace(SOURCE, component="vae_decoder"), HERE, REMEDY)


def test_an_engine_of_another_machine_is_refused_with_what_differs(store: Store) -> None:
    add(store, replace(RECIPE, target=replace(HERE, gpu="NVIDIA A100", compute_capability="8.0", version="8.6.0")))
    add(store, replace(RECIPE, target=replace(HERE, gpu="NVIDIA A100", compute_capability="8.0")))
    message = "that fits: the nearest is for GPU NVIDIA A100, here NVIDIA H100; compute capability 8.0, here 9.0; edge"
    with pytest.raises(NoEngine, match=message):
        find_engines([store], SOURCE, HERE, REMEDY)


def damage_plan(entry: Entry) -> None:
    entry.plan.write_bytes(PLAN[:-1] + b"!")


DAMAGE: dict[str, tuple[Callable[[Entry], object], str]] = {
    "missing": (lambda entry: entry.plan.unlink(), "cannot be read"),
    "truncated": (lambda entry: entry.plan.write_bytes(PLAN[:-1]), "truncated, 599 bytes, expected 600"),
    "longer": (lambda entry: entry.plan.write_bytes(PLAN + b"!"), "altered, 601 bytes, expected 600"),
    "altered": (damage_plan, "altered, SHA-256 .*, expected "),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_plan_is_not_read_but_built_again(
    damage: Callable[[Entry], object], message: str, store: Store
) -> None:
    entry = add(store)
    damage(entry)
    with pytest.raises(DamagedEngine, match=message):
        entry.read()
    assert add(store).read() == PLAN


def test_the_sidecar_of_another_engine(store: Store) -> None:
    entry = add(store)
    other = entry.sidecar.rename(entry.sidecar.with_name("unet-1234.json"))
    with pytest.raises(DamagedEngine, match=f"unet-1234.json: describes {RECIPE.name}"):
        read_sidecar(other)
    other.write_text("{}")
    with pytest.raises(DamagedEngine, match=r"does not describe an engine \(KeyError"):
        read_sidecar(other)
    assert list(store.entries()) == []
    record = json.loads(add(store).sidecar.read_text())
    for part, key in (("plan", "seconds"), ("recipe", "precision")):
        other.write_text(json.dumps(record | {part: record[part] | {key: [1]}}))
        with pytest.raises(DamagedEngine, match=rf"does not describe an engine \(TypeError\('{part}\.{key} is"):
            read_sidecar(other)


def test_a_build_that_fails_leaves_nothing(store: Store) -> None:
    def fail() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get_or_build(RECIPE, fail, by="")
    assert [path.suffix for path in store.folder.iterdir()] == [".lock"]


def test_a_full_disk_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"\.plan: cannot be written: No space left on device"):
        add(store)
    assert [path.suffix for path in store.folder.iterdir()] == [".lock"]


# Builds RECIPE in the folder argv[1]; says "building" and waits for argv[2] to exist, or says that it waits.
BUILDER = f"""
import os, sys, time
from pathlib import Path
from edgediffusion.engines.errors import EngineError
from edgediffusion.engines.recipe import Recipe
from edgediffusion.engines.store import Store

def build():
    print("building", flush=True)
    while not Path(sys.argv[2]).exists():
        time.sleep(0.01)
    return {PLAN!r}

recipe = Recipe.from_record({RECIPE.to_record()!r})
entry = Store(Path(sys.argv[1])).get_or_build(
    recipe, build, by=str(os.getpid()), on_wait=lambda name: print("waiting", flush=True)
)
print(entry.built.by, flush=True)
"""


@pytest.fixture
def start(store: Store, tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BUILDER, str(store.folder), str(tmp_path / "go")]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_two_processes_one_builds_and_the_other_waits(
    store: Store, tmp_path: Path, start: Callable[[], subprocess.Popen[str]]
) -> None:
    first = start()
    assert line(first) == "building"
    second = start()
    assert line(second) == "waiting"
    (tmp_path / "go").touch()
    assert line(first) == line(second) == str(first.pid)
    assert next(store.entries()).read() == PLAN


def test_waiting_can_be_stopped(store: Store, start: Callable[[], subprocess.Popen[str]]) -> None:
    assert line(start()) == "building"
    stop, waited = threading.Event(), list[str]()

    def on_wait(name: str) -> None:
        waited.append(name)
        stop.set()

    with pytest.raises(EngineError, match=f"{RECIPE.name}: stopped while another process builds it"):
        store.get_or_build(RECIPE, must_not_build, by="", on_wait=on_wait, stop=stop)
    assert waited == [RECIPE.name]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_builder_that_is_killed_leaves_no_engine_and_no_lock(
    store: Store, tmp_path: Path, start: Callable[[], subprocess.Popen[str]]
) -> None:
    first = start()
    assert line(first) == "building"
    second = start()
    assert line(second) == "waiting"
    half = store.folder / f"{RECIPE.name}.{first.pid}.plan.partial"
    half.write_bytes(PLAN[:100])  # what it would have written by then
    os.kill(first.pid, signal.SIGKILL)
    started = time.monotonic()
    assert line(second) == "building"
    assert time.monotonic() - started < 10  # the lock went with the process
    assert list(store.entries()) == []
    assert not half.exists()
    (tmp_path / "go").touch()
    assert line(second) == str(second.pid)
    assert {path.suffix for path in store.folder.iterdir()} == {".plan", ".json", ".lock"}
