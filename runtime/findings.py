"""What a machine must have besides a backend that works: a fleet asks `edgediffusion doctor --json` for it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from edgediffusion.engines.cuda import find_gpu
from edgediffusion.engines.errors import BackendUnavailable
from edgediffusion.engines.probe import Probe
from edgediffusion.engines.registry import BACKENDS
from edgediffusion.engines.store import Store

from .memory import free_memory

LEAST_MEMORY = 256 << 20  # the built-in model's peak is 241 MB: edgediffusion bench cold-start
LEAST_DISK = 256 << 20  # an engine of a small model
DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release"))  # the second on a Jetson


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`found` is what is there; where that will not do, `remedy` is what mends it."""

    name: str
    found: str
    passed: bool = True
    remedy: str = ""


def find(probes: Sequence[Probe]) -> tuple[Finding, ...]:
    """Driver, GPU, our kernels, libraries, memory, cache with its disk, clock; `probes` say which backends work."""
    builds = any(probe.works and BACKENDS[probe.backend].builds for probe in probes)
    installed = Path(__file__).stat().st_mtime
    cuda = any(probe.works for probe in probes if (probe.backend, probe.device) == ("ort", "cuda"))
    return (
        driver(DRIVERS),
        gpu(),
        kernels(cuda),
        libraries(),
        memory(free_memory()),
        cache(Store.of_user().folder, builds),
        clock(time.time(), installed),
    )


def driver(files: Iterable[Path]) -> Finding:
    """NVIDIA's, in the kernel and for programs."""
    loaded = next((path for path in files if path.exists()), None)
    if loaded is None:
        return Finding(name="driver", found="none of NVIDIA's")
    line = loaded.read_text(errors="replace").partition("\n")[0]
    found = line.removeprefix("NVRM version:").strip()
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        remedy = "start the container with --gpus all, or install the driver's libraries (libcuda.so.1)"
        return Finding(name="driver", found=f"{found}, but {error}", passed=False, remedy=remedy)
    return Finding(name="driver", found=found)


def gpu() -> Finding:
    """The one that this process would use; whether it does is for the probes to say."""
    try:
        gpu = find_gpu()
    except BackendUnavailable as error:
        return Finding(name="gpu", found=error.reason)
    return Finding(name="gpu", found=f"{gpu.name}, {gpu.compute_capability}, {gpu.memory >> 20} MiB, {gpu.driver}")


def kernels(works: bool) -> Finding:
    """Our own, which ONNX Runtime runs on an NVIDIA GPU where it `works` there; without them that is slower.

    And whether its sessions, of which the probe has opened one, use our arena.
    """
    if not works:
        return Finding(name="our kernels", found="not used, since ort on cuda does not work")
    from edgediffusion.engines.ort_arena import ARENA
    from edgediffusion.engines.ort_kernels import NoKernels, give_kernels

    arena = f"; it takes more memory and longer to start, since {ARENA.lacks}" if ARENA.lacks else ""
    try:
        give_kernels()
    except NoKernels as error:
        return Finding(name="our kernels", found=f"not used, so ort on cuda is slower: {error}{arena}")
    return Finding(name="our kernels", found=f"compiled for this GPU{arena}")


def libraries() -> Finding:
    """Those that edgediffusion cannot do without."""
    try:
        requirements = importlib.metadata.requires("edgediffusion") or ()
    except importlib.metadata.PackageNotFoundError:
        reason = "edgediffusion itself is not installed, this is a folder of its source"
        return Finding(name="libraries", found=reason, passed=False, remedy="pip install -e . (in that folder)")
    found, missing = [], []
    for requirement in requirements:
        match = re.match(r"[\w.-]+", requirement)
        if match is None or "extra ==" in requirement:
            continue
        try:
            found.append(f"{match[0]} {importlib.metadata.version(match[0])}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(match[0])
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        return Finding(name="libraries", found=f"no {', no '.join(missing)}", passed=False, remedy=remedy)
    return Finding(name="libraries", found=", ".join(found))


def memory(free: int | None) -> Finding:
    """What a program can have now."""
    if free is None:
        return Finding(name="free memory", found="the system does not say")
    found = f"{free >> 20} MiB"
    if free >= LEAST_MEMORY:
        return Finding(name="free memory", found=found)
    remedy = f"end other programs, or raise the limit: the built-in model takes {LEAST_MEMORY >> 20} MiB"
    return Finding(name="free memory", found=found, passed=False, remedy=remedy)


def cache(folder: Path, builds: bool) -> Finding:
    """Where engines are kept: whether it can be written, and its disk. Without `builds` nothing will be."""
    place = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    found, remedy = f"{folder}, {free >> 20} MiB free", ""
    if free < LEAST_DISK:
        remedy = "edgediffusion engines prune, or set XDG_CACHE_HOME to a folder with more room"
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        found = f"{folder} cannot be written: {error.strerror or error}"
        remedy = "set XDG_CACHE_HOME to a folder that this user may write to"
    if remedy and not builds:
        return Finding(name="cache", found=f"{found}; no backend here needs it")
    return Finding(name="cache", found=found, passed=not remedy, remedy=remedy)


def clock(now: float, installed: float) -> Finding:
    """A board without a battery wakes in the past: before edgediffusion was installed, by its own file."""
    found = datetime.fromtimestamp(now, timezone.utc).isoformat(timespec="seconds")
    if now < installed - 86400:  # a day, for time zones in a container's file system
        return Finding(
            name="clock", found=f"{found}, before this was installed", passed=False, remedy="timedatectl set-ntp true"
        )
    return Finding(name="clock", found=found)
