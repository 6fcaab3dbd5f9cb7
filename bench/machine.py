"""The facts that a result depends on."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from edgediffusion.runtime.manifest import MANIFEST

from . import gpu
from .report import environment

_HERE = Path(__file__).resolve().parent


def machine(cores: int) -> dict[str, Any]:
    """CPU, GPU, driver, clocks of now, versions, how busy it is, and the revision of this code."""
    found: dict[str, Any] = environment(cores)
    return found | {"gpu": gpu.facts(), "cpu_mhz": cpu_clocks(), "git_revision": revision()}


def cpu_clocks(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[float]:
    """MHz of each processor, where the system says so."""
    text = cpuinfo.read_text(errors="replace") if cpuinfo.exists() else ""
    return [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]


def revision(folder: Path = _HERE) -> str | None:
    """The commit of this code, with a plus where files differ from it; None outside a clone."""
    commands = (["git", "rev-parse", "HEAD"], ["git", "status", "--porcelain", "--untracked-files=no"])
    try:
        head, changed = (
            subprocess.run(c, cwd=folder, check=True, capture_output=True, text=True).stdout.strip() for c in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def bundle_digest(bundle: Path) -> str | None:
    """SHA-256 of the manifest, which has those of all other files; None for a folder that has none."""
    path = bundle / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def load_average() -> float:
    """How many processes wanted to run, over the last minute."""
    return os.getloadavg()[0]
