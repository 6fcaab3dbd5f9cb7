"""Results for people: the same rows on the screen and in the report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgediffusion.runtime.tables import make_console

from .schema import OURS, Measurement, Parameters, Ratio, Results, ratios
from .stats import WIDE, exponent, quantile

# Of a unit: from which value on, what it is divided by, what that is called.
_SCALES: dict[str, tuple[tuple[float, float, str], ...]] = {
    "s": ((1, 1, "s"), (1e-3, 1e-3, "ms"), (0, 1e-6, "us")),
    "bytes": ((1e9, 1e9, "GB"), (0, 1e6, "MB")),
    "bytes/s": ((0, 1e9, "GB/s"),),
    "FLOP": ((1e12, 1e12, "TFLOP"), (0, 1e9, "GFLOP")),
    "FLOP/s": ((1e12, 1e12, "TFLOP/s"), (0, 1e9, "GFLOP/s")),
}
GROWTH = {"growth-steps": "steps", "growth-batch": "batch", "growth-pixels": "pixels"}


@dataclass(frozen=True)
class Table:
    """Rows of text under `headers`."""

    title: str
    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(results: Results) -> Iterator[Table]:
    """What was measured, beside whom, and how it grows; those that have no rows are left out."""
    measured = [row(m) for m in results.measurements]
    beside = [ratio_row(r) for r in ratios(results.measurements)]
    grown = list(growth_rows(results))
    found = (
        Table("Measured", ("case", "", "who", "p50", "p90", "p99", "spread", "values"), measured),
        Table("Time of a peer / ours, round by round", ("case", "", "who", "median", "95 % interval", ""), beside),
        Table("Time ~ work^p", ("work", "who", "p"), grown),
    )
    return (table for table in found if table.rows)


def row(measurement: Measurement) -> tuple[str, ...]:
    """Percentiles; the spread only where there are several values, with a word where it is wide."""
    values = measurement.values
    shown = [amount(quantile(values, p), measurement.unit) for p in (0.5, 0.9, 0.99)]
    scatter = "" if len(values) == 1 else f"{100 * measurement.spread:.1f} %"
    if measurement.spread > WIDE:
        scatter += " WIDE"
    if len(values) == 1:
        shown[1:] = "", ""
    name = measurement.case
    return name, parameters(measurement.parameters), measurement.contender, *shown, scatter, str(len(values))


def ratio_row(ratio: Ratio) -> tuple[str, ...]:
    """With its interval, and a word where that is wide."""
    low, high = ratio.interval
    interval = f"{low:.2f} to {high:.2f}"
    shown = f"{ratio.median:.2f}"
    return ratio.case, parameters(ratio.parameters), ratio.contender, shown, interval, "WIDE" if ratio.wide else ""


def growth_rows(results: Results) -> Iterator[tuple[str, ...]]:
    """The exponent of each contender by each kind of work."""
    for case, work in GROWTH.items():
        for name in dict.fromkeys(m.contender for m in results.of(case)):
            found = results.of(case, name)
            if len(found) > 1:
                yield work, name, f"{exponent([amount_of_work(m) for m in found], [m.median for m in found]):.2f}"


def amount_of_work(measurement: Measurement) -> float:
    """Steps, pictures (rows of latents) or latents, as the case has it."""
    given: Any = measurement.parameters
    sizes = {"steps": given.get("steps"), "batch": given.get("batch")}
    work = GROWTH[measurement.case]
    return float(given["height"] * given["width"] if work == "pixels" else sizes[work])


def parameters(given: Parameters) -> str:
    """On one line."""
    return ", ".join(f"{name} {value}" for name, value in given.items())


def amount(value: float, unit: str) -> str:
    """Four digits and a unit that fits."""
    for least, divisor, name in _SCALES.get(unit, ()):
        if value >= least:
            return f"{value / divisor:.4g} {name}"
    return f"{value:.4g} {unit}".strip()


def facts(results: Results) -> Iterator[tuple[str, str]]:
    """What the figures depend on, by name."""
    machine = results.machine
    yield from ((name.replace("_", " "), str(value)) for name, value in results.settings.items())
    yield "cpu", f"{machine['cpu']}, {machine['cores_used']} of {machine['threads']} cores"
    clocks = machine["cpu_mhz"]
    if clocks:
        yield "cpu clocks", f"{min(clocks):.0f} to {max(clocks):.0f} MHz"
    if machine["gpu"]:
        gpu = machine["gpu"]
        yield "gpu", f"{gpu['name']}, driver {gpu['driver']}, {gpu['clocks']['sm']} MHz"
    yield "load average", f"{machine['load_average']:.1f} before, {machine['load_average_after']:.1f} after"
    yield "git revision", str(machine["git_revision"])
    for name, versions in machine["contenders"].items():
        yield f"versions, {name}", _versions(versions.items())
    yield f"versions, {OURS} and this benchmark", _versions(machine["versions"].items())


def _versions(items: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {version}" for name, version in items)


def show(results: Results) -> None:
    """Everything on stdout."""
    out = make_console()
    for name, value in facts(results):
        out.print(f"{name}: {value}")
    for line in results.skipped:
        out.print(line)
    for table in tables(results):
        show_table(table)


def show_table(table: Table) -> None:
    """A title and the rows."""
    from rich.table import Table as RichTable

    out = make_console()
    out.print(f"\n{table.title}")
    drawn = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for header in table.headers:
        drawn.add_column(header, justify="right" if header in _RIGHT else "left")
    for cells in table.rows:
        drawn.add_row(*cells)
    out.print(drawn)


_RIGHT: Sequence[str] = ("p50", "p90", "p99", "median", "values", "p", "before", "after", "change", "noise")
