"""Memory: what is free, what this process has, and a limit to it."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import sys
from pathlib import Path

from edgediffusion.engines.errors import UsageError


def free_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that a program can have now, in its container; None where the system does not say."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text() if meminfo.exists() else "", re.MULTILINE)
    if match is None:
        return None
    free = int(min(int(match[1]) << 10, _left_of_limit()))
    try:
        limit, used = (int((cgroup / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)", (cgroup / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # there is no container, or it has no limit: "max"
        return free
    return min(free, limit - used + int(cached[1] if cached else 0))


def tune_heaps() -> None:
    """Have glibc serve all threads from two heaps, and keep up to 64 MiB of what is freed; its variables go before.

    By itself it makes a heap for each thread, sets 64 MiB of addresses aside for it (`ulimit -v`) and keeps a tenth
    more memory, at no gain: what is large here has ONNX Runtime's own heap. And it gives arrays of some 100 KB and
    more back to the system when they are freed, so that the next ones are pages to be found and cleared anew.
    """
    if sys.platform != "linux":
        return
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    settings = (
        ("MALLOC_ARENA_MAX", m_arena_max, 2),
        ("MALLOC_MMAP_THRESHOLD_", m_mmap_threshold, 32 << 20),  # the most that glibc takes
        ("MALLOC_TRIM_THRESHOLD_", m_trim_threshold, 64 << 20),
    )
    with contextlib.suppress(AttributeError):  # another libc
        mallopt = ctypes.CDLL(None).mallopt
        for variable, parameter, value in settings:
            if variable not in os.environ:
                mallopt(parameter, value)


def limit_memory(size: int) -> None:
    """Let this process have no more than `size` bytes for itself; mapped files, and a GPU's memory, do not count.

    Raises:
        UsageError: this system cannot do that, or does not allow it.
    """
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (size, hard))
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(f"memory cannot be limited to {size >> 20} MiB here ({error})") from None


def _left_of_limit() -> float:
    """Bytes that `ulimit -d`, or `limit_memory`, leaves this process."""
    try:
        import resource
    except ImportError:
        return math.inf
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    status = Path("/proc/self/status")
    if limit == resource.RLIM_INFINITY or not status.exists():
        return math.inf
    used = re.search(r"^VmData:\s+(\d+) kB", status.read_text(), re.MULTILINE)
    return math.inf if used is None else max(0, limit - (int(used[1]) << 10))


def resident_memory(statm: Path = Path("/proc/self/statm")) -> int:
    """Bytes that this process has now; the system must be one where `free_memory` is not None."""
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_memory(status: Path = Path("/proc/self/status")) -> int | None:
    """The most bytes that this process had at a time; None where the system does not say."""
    if status.exists():  # what getrusage says on Linux can be the peak of the process that started this one
        match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        return None if match is None else int(match[1]) << 10
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
