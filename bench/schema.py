"""What a benchmark of models writes: measurements, ratios, and the facts of the machine, in one JSON schema."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgediffusion.engines.errors import UsageError

from .stats import WIDE, median_interval, quantile, spread

SCHEMA = 1
OURS = "edgediffusion"
EQUAL = 120.0  # dB, the PSNR of pictures that are equal: JSON has no infinity
Parameters = Mapping[str, Any]
Key = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one contender took in one case. `rounds` are the values of each round, in the order of the calls.

    Units: s, bytes, J, dB, FLOP, FLOP/s, bytes/s, "relative" (an error as a part of the largest value), "" for a
    plain number.
    """

    case: str
    contender: str
    unit: str
    rounds: tuple[tuple[float, ...], ...]
    parameters: Parameters = field(default_factory=dict)

    @property
    def values(self) -> list[float]:
        """Of all rounds."""
        return [value for values in self.rounds for value in values]

    @property
    def median(self) -> float:
        """Of all values: p50."""
        return statistics.median(self.values)

    @property
    def key(self) -> Key:
        """What it is the measurement of: the same in every run of the benchmark."""
        return self.case, self.contender, json.dumps(dict(self.parameters), sort_keys=True), self.unit

    @property
    def spread(self) -> float:
        """See `stats.spread`."""
        return spread(self.values)

    def to_json(self) -> dict[str, Any]:
        """With percentiles, which whoever reads the file need not compute."""
        percentiles = {f"p{p}": quantile(self.values, p / 100) for p in (50, 90, 99)}
        return dataclasses.asdict(self) | percentiles | {"spread": self.spread, "wide": self.spread > WIDE}


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as long as ours a peer took: one ratio of medians for each round, in which both ran in turn."""

    case: str
    contender: str
    parameters: Parameters
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """Above 1, we are faster."""
        return statistics.median(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """See `stats.median_interval`."""
        return median_interval(self.values)

    @property
    def wide(self) -> bool:
        """Whether the interval is too wide to tell a tenth."""
        low, high = self.interval
        return high - low > WIDE * self.median

    def to_json(self) -> dict[str, Any]:
        """With median and interval."""
        summary = {"median": self.median, "interval": list(self.interval), "wide": self.wide}
        return dataclasses.asdict(self) | summary


@dataclass(frozen=True, kw_only=True)
class Span:
    """A part of one generation, in seconds from its beginning."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """All of one benchmark. `skipped` are lines: what was not measured, and why."""

    settings: dict[str, Any]
    machine: dict[str, Any]
    measurements: tuple[Measurement, ...]
    timeline: tuple[Span, ...] = ()
    skipped: tuple[str, ...] = ()

    def of(self, case: str, contender: str | None = None) -> list[Measurement]:
        """Those of one case, of all contenders or one."""
        return [m for m in self.measurements if m.case == case and contender in (None, m.contender)]

    def to_json(self) -> str:
        """The text of the file."""
        content = {
            "schema": SCHEMA,
            "settings": self.settings,
            "machine": self.machine,
            "measurements": [measurement.to_json() for measurement in self.measurements],
            "ratios": [ratio.to_json() for ratio in ratios(self.measurements)],
            "timeline": [dataclasses.asdict(span) for span in self.timeline],
            "skipped": list(self.skipped),
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what `to_json` made.

        Raises:
            UsageError: it cannot be read, is no such file, or has another schema.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise UsageError(f"{path}: schema {content['schema']}, this version reads {SCHEMA}; measure again")
            return cls(
                settings=content["settings"],
                machine=content["machine"],
                measurements=tuple(_measurement(record) for record in content["measurements"]),
                timeline=tuple(Span(**record) for record in content["timeline"]),
                skipped=tuple(content["skipped"]),
            )
        except OSError as error:
            raise UsageError(
                f"{path}: cannot be read ({error.strerror}); name a file that bench --json wrote"
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: not what bench --json writes ({error!r}); measure again") from None


def ratios(measurements: Iterable[Measurement]) -> Iterator[Ratio]:
    """Of each timed measurement of a peer and ours beside it."""
    timed = [m for m in measurements if m.unit == "s"]
    ours = {(m.case, m.key[2]): m for m in timed if m.contender == OURS}
    for theirs in timed:
        own = ours.get((theirs.case, theirs.key[2]))
        if own is not None and theirs.contender != OURS and len(own.rounds) == len(theirs.rounds):
            pairs = zip(theirs.rounds, own.rounds, strict=True)
            values = tuple(statistics.median(a) / statistics.median(b) for a, b in pairs)
            yield Ratio(case=theirs.case, contender=theirs.contender, parameters=theirs.parameters, values=values)


def _measurement(record: dict[str, Any]) -> Measurement:
    names = [f.name for f in dataclasses.fields(Measurement)]
    fields = {name: record[name] for name in names}
    return Measurement(**fields | {"rounds": tuple(map(tuple, record["rounds"]))})
