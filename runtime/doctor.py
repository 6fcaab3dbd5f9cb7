"""What this machine is, as far as running a model on it is concerned."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgediffusion import __version__

# What kernels for matrices choose by, as /proc/cpuinfo spells it on x86 and on Arm.
_X86 = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
)
_ARM = ("asimd", "asimdhp", "asimddp", "bf16", "i8mm", "sve", "sve2", "sme")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """None and () stand for what the system does not say.

    `features` are the instruction sets that matter, `threads` those that this process may use, `memory` is in bytes.
    """

    versions: dict[str, str]
    system: str
    cpu: str | None
    features: tuple[str, ...]
    threads: int | None
    memory: int | None


def examine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """Ask the system."""
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    facts: dict[str, str] = {}
    for key, _, value in (line.partition(":") for line in lines):
        facts.setdefault(key.strip(), value.strip())
    present = facts.get("flags", facts.get("Features", "")).split()
    return Machine(
        versions={"edgediffusion": __version__, "python": platform.python_version(), "numpy": np.__version__},
        system=f"{platform.system()} {platform.machine()}",
        cpu=facts.get("model name") or facts.get("Model") or platform.processor() or None,
        features=tuple(name for name in _X86 + _ARM if name in present),
        threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory=_memory(),
    )


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
