from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import pytest

from edgediffusion.runtime.doctor import examine

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
