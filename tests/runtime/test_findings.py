from __future__ import annotations

import ctypes
import importlib.metadata
import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from edgediffusion.engines import ort_arena, ort_kernels
from edgediffusion.engines.cuda import Gpu
from edgediffusion.engines.errors import BackendUnavailable
from edgediffusion.engines.probe import Probe
from edgediffusion.runtime import findings
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.findings import Finding

WORKS = Probe(backend="ort", device="cpu", versions={}, works=True)


def test_what_is_found_here() -> None:
    found = findings.find([WORKS])
    assert [finding.name for finding in found] == [
        "driver",
        "gpu",
        "our kernels",
        "libraries",
        "free memory",
        "cache",
        "clock",
    ]
    assert all(finding.passed == (finding.remedy == "") for finding in found)
    assert "numpy " in found[3].found
    assert "onnxruntime" not in found[3].found  # an extra's


@pytest.mark.parametrize("bad", [False, True])
def test_doctor_says_it_to_people_and_to_fleets(
    bad: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = Finding(name="clock", found="1970", passed=not bad, remedy="set it" if bad else "")
    monkeypatch.setattr(findings, "find", lambda probes: (finding,))
    assert main(["doctor", "--json"]) == int(bad)
    assert json.loads(capsys.readouterr().out)["findings"] == [vars(finding)]
    assert main(["doctor"]) == int(bad)
    assert ("clock: 1970\n    set it\n" in capsys.readouterr().out) == bad


def test_a_driver_without_its_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05\nGCC version: 12\n")
    assert findings.driver([tmp_path / "none"]) == Finding(name="driver", found="none of NVIDIA's")

    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    found = findings.driver([tmp_path / "none", version])
    assert not found.passed
    assert found.found.startswith("NVIDIA UNIX x86_64 Kernel Module  580.95.05, but libcuda.so.1: cannot open")
    assert "--gpus all" in found.remedy
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    assert findings.driver([version]).passed


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(name="NVIDIA H100", compute_capability="9.0", driver="580.95.05", memory=80 << 30)
    monkeypatch.setattr(findings, "find_gpu", lambda: gpu)
    assert findings.gpu().found == "NVIDIA H100, 9.0, 81920 MiB, 580.95.05"

    def none() -> None:
        raise BackendUnavailable("no NVIDIA GPU on this machine", "take the CPU")

    monkeypatch.setattr(findings, "find_gpu", none)
    assert findings.gpu() == Finding(name="gpu", found="no NVIDIA GPU on this machine")


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["no-such-library>=1", "x>=2 ; extra == 'x'"])
    found = findings.libraries()
    assert (found.passed, found.found, found.remedy) == (False, "no no-such-library", "pip install no-such-library")


def test_a_source_tree_that_was_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", requires)
    found = findings.libraries()
    assert (found.passed, found.remedy) == (False, "pip install -e . (in that folder)")
    assert found.found == "edgediffusion itself is not installed, this is a folder of its source"


@pytest.mark.parametrize(("free", "passed"), [(None, True), (100 << 20, False), (1 << 30, True)])
def test_free_memory(free: int | None, passed: bool) -> None:
    found = findings.memory(free)
    assert found.passed == passed == (found.remedy == "")


@pytest.mark.parametrize("builds", [False, True])
def test_a_cache_that_cannot_be_used(builds: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It matters where engines are built."""
    assert findings.cache(tmp_path / "not" / "there", builds).passed
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(9, 9, 1 << 20))
        found = findings.cache(tmp_path, builds)
        assert ("1 MiB free" in found.found, found.passed) == (True, not builds)

    def read_only(dir: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    found = findings.cache(tmp_path, builds)
    assert found.found.startswith(f"{tmp_path} cannot be written: Read-only file system")
    assert (found.passed, found.remedy) == (
        (False, "set XDG_CACHE_HOME to a folder that this user may write to") if builds else (True, "")
    )


def test_whether_our_kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings.kernels(False).found == "not used, since ort on cuda does not work"
    monkeypatch.setattr(ort_kernels, "give_kernels", lambda: None)
    monkeypatch.setattr(ort_arena.ARENA, "lacks", "")
    assert findings.kernels(True).found == "compiled for this GPU"
    assert findings.find([replace(WORKS, device="cuda")])[2] == findings.kernels(True)
    monkeypatch.setattr(ort_kernels, "give_kernels", Mock(side_effect=ort_kernels.NoKernels("no compiler", "get one")))
    found = findings.kernels(True)
    assert (found.passed, found.found) == (True, "not used, so ort on cuda is slower: no compiler; get one")
    monkeypatch.setattr(ort_arena.ARENA, "lacks", "CUDA's driver says 801")
    assert findings.kernels(True).found.endswith("longer to start, since CUDA's driver says 801")


def test_a_clock_that_was_not_set() -> None:
    installed = 1.8e9
    assert findings.clock(installed + 1, installed).passed
    found = findings.clock(0.0, installed)
    assert (found.passed, found.remedy) == (False, "timedatectl set-ntp true")
    assert found.found == "1970-01-01T00:00:00+00:00, before this was installed"
