"""How long the parts of a run take. Parts may overlap: engines are opened side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .loop import Step
    from .run import Run


class Timings:
    """The parts by name, each with the seconds from the start of the process to its begin and its end."""

    def __init__(self) -> None:
        self._zero = time.perf_counter() - process_age()
        self.parts = {"start of Python, imports, small files": (0.0, self.now())}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the block; one of a name that is known makes that part longer."""
        begin = self.now()
        begin, _ = self.parts.setdefault(name, (begin, begin))
        try:
            yield
        finally:
            self.parts[name] = begin, self.now()

    def now(self) -> float:
        """Seconds since the process was started."""
        return time.perf_counter() - self._zero

    def lines(self) -> list[str]:
        """A table: begin, duration and name of each part, in the order in which they began."""
        rows = sorted((begin, end - begin, name) for name, (begin, end) in self.parts.items())
        return [" begin  seconds", *(f"{begin:6.2f}  {seconds:7.3f}  {name}" for begin, seconds, name in rows)]


def measured(run: Run) -> Iterator[Step]:
    """The steps of `run`, the first two apart: one finds kernels, one captures launches, where that is done."""
    timings = run.pipeline.bundle.timings
    with timings.part("text encoder"):
        steps = iter(run)
    for i in range(len(run)):
        with timings.part(f"step {i + 1}" if i < 2 else f"steps 3 to {len(run)}"):
            step = next(steps)
        yield step


def process_age() -> float:
    """Seconds since this process was started, to a hundredth; 0 where the system does not say."""
    try:
        with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (AttributeError, OSError, ValueError):
        return 0.0
