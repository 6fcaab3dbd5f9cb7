from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import pytest

from edgediffusion.runtime.doctor import examine, free_memory, peak_memory

X86 = """processor\t: 0
model name\t: A Processor @ 2.60GHz
flags\t\t: fpu sse2 avx2 fma avx512f amx_tile

processor\t: 1
model name\t: Another
"""
ARM = """processor\t: 0
Features\t: fp asimd asimdhp

Model\t\t: A Board Model B
"""


@pytest.mark.parametrize(
    ("cpuinfo", "cpu", "features"),
    [
        (X86, "A Processor @ 2.60GHz", ("avx2", "fma", "avx512f")),
        (ARM, "A Board Model B", ("asimd", "asimdhp")),
        ("", platform.processor() or None, ()),
    ],
)
def test_the_cpu(cpuinfo: str, cpu: str | None, features: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    machine = examine(tmp_path / "cpuinfo")
    assert (machine.cpu, machine.features) == (cpu, features)


def test_a_system_without_that_file(tmp_path: Path) -> None:
    assert examine(tmp_path / "none").features == ()


def test_this_machine() -> None:
    machine = examine()
    assert machine.versions["python"] == platform.python_version()
    assert machine.versions["numpy"] == np.__version__
    assert machine.threads is None or 1 <= machine.threads <= (os.cpu_count() or 1)
    assert machine.memory is None or machine.memory > 2**26


def test_a_system_that_does_not_tell_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert examine().memory is None


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
