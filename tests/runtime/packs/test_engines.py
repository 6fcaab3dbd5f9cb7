"""Plans that the real TensorRT-RTX built travel in a pack. It needs no GPU for that, but one to load a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgediffusion.engines.recipe import Target
from edgediffusion.engines.store import DamagedEngine, Entry, NoEngine, Store, find_engines
from edgediffusion.engines.tensorrt_store import BUNDLE_STORE, Job
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.manifest import Manifest
from edgediffusion.runtime.pipeline import BUILTIN

pytestmark = pytest.mark.slow
PACK = ["pack", str(BUILTIN), "--engines", "--target", "sm_89", "-o"]


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """That for compute capability 8.9, of two in the user's cache; model.edz is for sm_89."""
    pytest.importorskip("tensorrt_rtx")
    cache = Store(tmp_path / "cache")
    monkeypatch.setattr(Store, "of_user", lambda: cache)
    for capability in ("8.9", "12.0"):
        build = ["build", str(BUILTIN), "--backend", "tensorrt_rtx", "--component", "text_encoder"]
        assert main([*build, "--compute-capability", capability]) == 0
    assert main([*PACK, str(tmp_path / "model.edz")]) == 0
    (entry,) = (entry for entry in cache.entries() if entry.recipe.target.compute_capability == "8.9")
    return entry


def test_a_plan_arrives_and_is_found(built: Entry, tmp_path: Path) -> None:
    there = tmp_path / "there"
    assert main(["verify", str(tmp_path / "model.edz")]) == 0
    assert main(["unpack", str(tmp_path / "model.edz"), "-o", str(there)]) == 0
    store = Store(there / BUNDLE_STORE)
    (entry,) = store.entries()
    assert entry.recipe == built.recipe
    assert entry.read() == built.read()
    graph = Manifest.read(there).graphs["text_encoder"]
    source = Job.of(there / graph.model, graph.spec, graph.dtype).source
    version = built.recipe.target.version
    machine = Target(backend="tensorrt_rtx", version=version, gpu="a", compute_capability="8.9", driver="b")
    assert find_engines([store], source, machine, "") == [entry]
    with pytest.raises(NoEngine, match=r"the nearest is for compute capability 8\.9, here 12\.0"):
        find_engines([store], source, replace(machine, compute_capability="12.0"), "")
    entry.plan.write_bytes(altered(built))
    with pytest.raises(DamagedEngine, match=r"altered, SHA-256 .*; build it again"):
        entry.read()


def test_an_altered_plan(built: Entry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a pack, and before it is packed."""
    content = (tmp_path / "model.edz").read_bytes()
    (tmp_path / "altered.edz").write_bytes(content.replace(built.read(), altered(built)))
    built.plan.write_bytes(altered(built))
    for command in (
        ["verify", str(tmp_path / "altered.edz")],
        ["unpack", str(tmp_path / "altered.edz"), "-o", str(tmp_path / "there")],
        [*PACK, str(tmp_path / "second.edz")],
    ):
        assert main(command) == 2
        assert f"{built.plan.name}: altered" in capsys.readouterr().err
    assert not (tmp_path / "there" / BUNDLE_STORE / built.plan.name).exists()
    assert not (tmp_path / "second.edz").exists()


def altered(entry: Entry) -> bytes:
    """Its plan, but for a bit in the middle."""
    plan = bytearray(entry.read())
    plan[len(plan) // 2] ^= 1
    return bytes(plan)
