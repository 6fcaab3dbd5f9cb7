"""`edgediffusion bench compare`: two results of the same benchmark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgediffusion.runtime.arguments import Parser

from .schema import Measurement, Ratio, Results, ratios
from .tables import Table, amount, parameters, show_table

# Where the settings differ the figures are of different things, and the reader has to know.
_SAME = ("model", "bundle_digest", "dtype", "backend", "device", "num_inference_steps", "guidance_scale")


def compare(arguments: Sequence[str]) -> int:
    """Print what changed from one result to another, and whether that is more than the noise."""
    parser = Parser("bench compare", compare.__doc__ or "")
    parser.add_argument("before", type=Path, metavar="A.json", help="what bench --json wrote")
    parser.add_argument("after", type=Path, metavar="B.json", help="the same, later or elsewhere")
    options = parser.parse_args(arguments)
    before, after = Results.read(options.before), Results.read(options.after)
    table = Table("Facts that differ", ("fact", "before", "after"), list(differing(before, after)))
    changes = Table(
        "Measured in both",
        ("case", "", "who", "before", "after", "change", "noise", "verdict"),
        [change(a, b) for a, b in pairs(before, after)],
    )
    found, later = (
        {(r.case, r.contender, parameters(r.parameters)): r for r in ratios(x.measurements)} for x in (before, after)
    )
    beside = Table(
        "Time of a peer / ours",
        ("case", "", "who", "before", "after", "verdict"),
        [ratio_change(found[key], later[key]) for key in found.keys() & later.keys()],
    )
    for shown in (table, changes, beside):
        if shown.rows:
            show_table(shown)
    return 0


def differing(before: Results, after: Results) -> Iterator[tuple[str, str, str]]:
    """Settings and machines."""
    for name in _SAME:
        a, b = before.settings.get(name), after.settings.get(name)
        if a != b:
            yield name, str(a), str(b)
    for name in ("cpu", "cores_used", "gpu", "git_revision", "versions"):
        a, b = before.machine.get(name), after.machine.get(name)
        if a != b:
            yield name, str(a), str(b)


def pairs(before: Results, after: Results) -> Iterator[tuple[Measurement, Measurement]]:
    """Those that both have, in the order of the second."""
    known = {measurement.key: measurement for measurement in before.measurements}
    return ((known[m.key], m) for m in after.measurements if m.key in known)


def noise(a: Measurement, b: Measurement) -> float:
    """What two runs may differ by though nothing changed, as a part: the spreads of both, as independent errors add.

    The spread of single calls, not the interval of their median: two runs also differ by what the machine did besides,
    which no number of calls within one of them can show.
    """
    return math.hypot(a.spread, b.spread)


def change(a: Measurement, b: Measurement) -> tuple[str, ...]:
    """A row: both medians, their ratio less 1, the noise, and which is larger."""
    part = b.median / a.median - 1 if a.median else math.inf if b.median else 0.0
    limit = noise(a, b)
    verdict = "same" if part == 0 else "within the noise" if abs(part) <= limit else "more" if part > 0 else "less"
    shown = [amount(m.median, m.unit) for m in (a, b)]
    return (
        a.case,
        parameters(a.parameters),
        a.contender,
        *shown,
        f"{100 * part:+.1f} %",
        f"{100 * limit:.1f} %",
        verdict,
    )


def ratio_change(a: Ratio, b: Ratio) -> tuple[str, ...]:
    """A row: what slowed the whole machine cancels in a ratio, so disjoint intervals are a change."""
    (low_a, high_a), (low_b, high_b) = a.interval, b.interval
    verdict = "more" if low_b > high_a else "less" if high_b < low_a else "within the noise"
    return a.case, parameters(a.parameters), a.contender, f"{a.median:.2f}", f"{b.median:.2f}", verdict
