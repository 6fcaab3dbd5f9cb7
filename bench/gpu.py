"""What NVML says of the first GPU. All of it is optional: without pynvml, or a GPU, there is nothing to say."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

_PERIOD = 0.005  # seconds between two looks at the memory


def _device() -> tuple[Any, Any] | None:
    """pynvml and the handle of the GPU."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError:
        return None


def facts() -> dict[str, Any] | None:
    """Name, driver, memory in bytes, and the clocks of now in MHz."""
    if (device := _device()) is None:
        return None
    nvml, handle = device
    return {
        "name": nvml.nvmlDeviceGetName(handle),
        "driver": nvml.nvmlSystemGetDriverVersion(),
        "memory": nvml.nvmlDeviceGetMemoryInfo(handle).total,
        "clocks": {
            "sm": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
        },
    }


def joules() -> float | None:
    """What the GPU has taken since its driver was loaded; None where it does not count."""
    if (device := _device()) is None:
        return None
    nvml, handle = device
    try:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except nvml.NVMLError:
        return None


def memory_used() -> float | None:
    """Bytes of its memory that are in use, by whomever; None without a GPU."""
    device = _device()
    return None if device is None else _used(*device)


def _used(nvml: Any, handle: Any) -> float:
    return float(nvml.nvmlDeviceGetMemoryInfo(handle).used)


@contextlib.contextmanager
def watch_memory() -> Iterator[list[float]]:
    """When the block ends the list holds the most bytes in use beyond what was before; nothing without a GPU."""
    peak: list[float] = []
    if (device := _device()) is None:
        yield peak
        return
    before, most, done = _used(*device), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(_PERIOD):
            most[0] = max(most[0], _used(*device) - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        last = _used(*device) - before
        done.set()
        thread.join()
        peak.append(max(most[0], last))
