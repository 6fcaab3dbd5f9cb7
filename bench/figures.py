"""A figure: what was measured, once for each run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """`values` are in the order of the runs. Units: s, ms, us, MB (1e6 bytes), and "x" for a ratio."""

    name: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value; of an even number, the mean of the middle two."""
        return statistics.median(self.values)

    def to_json(self) -> dict[str, Any]:
        """With every run's value."""
        summary = {"median": self.median, "min": min(self.values), "max": max(self.values)}
        return {"name": self.name, "unit": self.unit, **summary, "runs": list(self.values)}


def paired(
    name: str, unit: str, operation: Callable[[float, float], float], first: Iterable[float], second: Iterable[float]
) -> Figure:
    """`operation` of each run of `first` and the run of `second` beside it, so that what slows both cancels."""
    return Figure(name=name, unit=unit, values=tuple(map(operation, first, second)))
