from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.memory import free_memory, limit_memory, peak_memory


@pytest.mark.parametrize(
    ("limit", "free"), [("3000000", 3_000_000 - 2_500_000 + 500_000), ("max", 4 << 20), ("9000000000", 4 << 20)]
)
def test_free_memory_of_a_container(limit: str, free: int, tmp_path: Path) -> None:
    """What it uses to keep files counts as free."""
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:    4096 kB\n")
    assert free_memory(tmp_path / "meminfo", tmp_path) == 4 << 20
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000\n")
    assert free_memory(tmp_path / "meminfo", tmp_path) == free
    assert free_memory(tmp_path / "none", tmp_path) is None


def test_the_peak_is_what_was_held_and_given_back(tmp_path: Path) -> None:
    before = peak_memory()
    assert before is not None
    held = np.ones(before // 4, np.float64)  # 2 times the peak
    del held
    after = peak_memory()
    assert after is not None
    assert before < after < 4 * before + (64 << 20)
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t  2048 kB\n")
    assert peak_memory(tmp_path / "status") == 2 << 20
    (tmp_path / "status").write_text("Name:\tpython\n")
    assert peak_memory(tmp_path / "status") is None


def test_memory_that_is_free(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:   2 kB\n")
    assert free_memory(tmp_path / "meminfo") == 2048
    assert free_memory(tmp_path / "none") is None


def test_memory_cannot_be_limited_beyond_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")

    def setrlimit(which: int, limits: tuple[int, int]) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    with pytest.raises(UsageError, match=r"memory cannot be limited to 1 MiB here \(not allowed to raise"):
        limit_memory(1 << 20)


def test_free_memory_knows_the_limit_of_the_process(tmp_path: Path) -> None:
    """On a machine that has a lot more."""
    resource = pytest.importorskip("resource")
    (tmp_path / "meminfo").write_text(f"MemAvailable: {1 << 40} kB\n")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        limit_memory(8 << 30)
        free = free_memory(tmp_path / "meminfo", tmp_path)
        held = np.zeros(64 << 20, np.uint8)
        less = free_memory(tmp_path / "meminfo", tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    assert free is not None
    assert less is not None
    assert 0 < less <= free - held.nbytes < free < 8 << 30


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc, which has no thresholds")
@pytest.mark.parametrize(("own", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "0"}, False)])
def test_memory_that_was_freed_is_kept_unless_a_variable_says_otherwise(own: dict[str, str], kept: bool) -> None:
    """Told by its pages: two arrays of 3000 each, made and freed ten times."""
    program = """
import resource
from edgediffusion.runtime.memory import tune_heaps

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

tune_heaps()
before = faults()
for _ in range(10):
    arrays = [b"x" * (3000 * resource.getpagesize()) for _ in range(2)]
    del arrays
print(faults() - before)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | own
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 12_000) == kept
