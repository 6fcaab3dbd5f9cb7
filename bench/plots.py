"""Plots of results. To add one: a function from results to a figure, or None where nothing fits, and a line below."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgediffusion.engines.errors import BackendUnavailable, UsageError
from edgediffusion.runtime.arguments import Parser, print_line

from .schema import EQUAL, Measurement, Results, ratios
from .stats import exponent
from .tables import GROWTH, amount_of_work

_COLOURS = ("#0b6e99", "#d9730d", "#6940a5", "#448361", "#ad1a72", "#64473a")
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edgediffusion",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 9,
    "legend.frameon": False,
}


def plot(arguments: Sequence[str]) -> int:
    """Draw what `bench --json` wrote."""
    parser = Parser("bench plot", plot.__doc__ or "")
    add = parser.add_argument
    add("results", type=Path, metavar="FILE.json", help="what bench --json wrote")
    add("out", type=Path, metavar="FOLDER", help="where the plots go; it must be there")
    add("--format", choices=("svg", "png"), default="svg", help="default: %(default)s")
    options = parser.parse_args(arguments)
    results = Results.read(options.results)
    if not options.out.is_dir():
        raise UsageError(f"{options.out}: there is no such folder; make it first")
    for name, data in drawn(results, options.format).items():
        path = options.out / f"{name}.{options.format}"
        path.write_bytes(data)
        print_line(str(path))
    return 0


def drawn(results: Results, kind: str) -> dict[str, bytes]:
    """Each plot for which the results have something, as the bytes of a file.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise BackendUnavailable("plots: matplotlib is not installed", "pip install 'edgediffusion[bench]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    found = {}
    with matplotlib.rc_context(_STYLE):
        for name, draw in PLOTS.items():
            figure = draw(results)
            if figure is not None:
                file = io.BytesIO()
                figure.savefig(
                    file, format=kind, bbox_inches="tight", dpi=150, metadata={"Date": None} if kind == "svg" else None
                )
                pyplot.close(figure)
                found[name] = file.getvalue()
    return found


def _axes(columns: int = 1, *, width: float = 5.2, height: float = 3.4) -> tuple[Any, Any]:
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(columns * width, height), layout="constrained")


def _colours(results: Results) -> dict[str, str]:
    names = dict.fromkeys(m.contender for m in results.measurements)
    return {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}


def beside(results: Results) -> Any:
    """How many times as long as ours each peer takes, with the interval."""
    found = [
        r
        for r in ratios(results.measurements)
        if r.case in ("start", "load", "text_encoder", "unet", "vae_decoder", "picture")
    ]
    if not found:
        return None
    figure, axes = _axes(height=0.6 + 0.3 * len(found))
    colours = _colours(results)
    labels = []
    for y, ratio in enumerate(reversed(found)):
        low, high = ratio.interval
        axes.plot([low, high], [y, y], color=colours[ratio.contender], linewidth=2)
        axes.plot(ratio.median, y, "o", color=colours[ratio.contender])
        axes.annotate(f"{ratio.median:.2f}", (high, y), (6, -3), textcoords="offset points")
        labels.append(f"{ratio.case}, {ratio.contender}")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xscale("log")
    ticks = [
        t for t in (0.25, 0.5, 1, 2, 3, 5, 10, 20, 50) if 0.8 * axes.get_xlim()[0] <= t <= 1.2 * axes.get_xlim()[1]
    ]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("time / edgediffusion's time, median of rounds and its 95 % interval; right of 1 we are faster")
    return figure


def latency_quality(results: Results) -> Any:
    """What a second buys: each point is a number of steps."""
    return _quality(results, lambda m: _median_time(results, m), "seconds a picture (p50)")


def steps_quality(results: Results) -> Any:
    """How close to the picture of the most steps fewer steps come."""
    return _quality(results, lambda m: float(m.parameters["steps"]), "steps")


def _median_time(results: Results, quality: Measurement) -> float | None:
    for timed in results.of("growth-steps", quality.contender):
        if timed.parameters["steps"] == quality.parameters["steps"]:
            return timed.median
    return None


def _quality(results: Results, place: Callable[[Measurement], float | None], label: str) -> Any:
    most = max((m.parameters["against"] for m in results.of("quality") if "against" in m.parameters), default=None)
    figure = None
    for name, colour in _colours(results).items():
        against = [m for m in results.of("quality", name) if m.parameters.get("against") == most]
        found = [m for m in against if m.median < EQUAL]  # the reference itself has no place on the axis
        points = [(x, m.median, m.parameters["steps"]) for m in found if (x := place(m)) is not None]
        if not points:
            continue
        if figure is None:
            figure, axes = _axes()
            axes.set_xlabel(label)
            axes.set_ylabel(f"PSNR against {most} steps in float32, dB")
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", color=colour, label=name)
        for x, y, n in points:
            axes.annotate(f"{n}", (x, y), (4, 4), textcoords="offset points", color=colour)
    if figure is not None:
        axes.legend()
        axes.set_xlim(left=0)
    return figure


def batch_throughput(results: Results) -> Any:
    """Pictures a second by how many are drawn together."""
    found = results.of("throughput")
    if not found:
        return None
    figure, axes = _axes()
    for name, colour in _colours(results).items():
        own = [m for m in found if m.contender == name]
        if own:
            batches = [m.parameters["batch"] for m in own]
            axes.plot(
                batches, [b / m.median for b, m in zip(batches, own, strict=True)], "o-", color=colour, label=name
            )
            axes.set_xticks(batches)
    axes.set_xlabel("pictures at once")
    axes.set_ylabel("pictures a second")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def timeline(results: Results) -> Any:
    """When the engines ran in one generation; what lies between is the loop's."""
    if not results.timeline:
        return None
    names = list(dict.fromkeys(span.name for span in results.timeline))
    figure, axes = _axes(width=8, height=0.8 + 0.35 * len(names))
    for y, name in enumerate(reversed(names)):
        spans = [(1e3 * s.start, 1e3 * (s.end - s.start)) for s in results.timeline if s.name == name]
        colour = _COLOURS[names.index(name) % len(_COLOURS)]
        axes.broken_barh(spans, (y - 0.35, 0.7), facecolor=colour, edgecolor="white", linewidth=0.5)
        share = sum(width for _, width in spans)
        axes.annotate(f"{share:.0f} ms", (max(a + b for a, b in spans), y), (4, -3), textcoords="offset points")
    axes.set_yticks(range(len(names)), reversed(names))
    axes.set_xlabel("ms from the beginning of one generation")
    axes.margins(x=0.08)
    return figure


def growth(results: Results) -> Any:
    """Time against work, both logarithmic: the slope is the exponent."""
    cases = [case for case in GROWTH if len(results.of(case)) > 1]
    if not cases:
        return None
    figure, panels = _axes(len(cases), width=3.6)
    titles = {
        "growth-steps": "picture, steps",
        "growth-batch": "UNet, rows of the batch",
        "growth-pixels": "UNet, latents",
    }
    for axes, case in zip(panels if len(cases) > 1 else [panels], cases, strict=True):
        for name, colour in _colours(results).items():
            own = results.of(case, name)
            if len(own) > 1:
                work, times = [amount_of_work(m) for m in own], [m.median for m in own]
                axes.loglog(work, times, "o-", color=colour, label=f"{name}: p = {exponent(work, times):.2f}")
        work = sorted({amount_of_work(m) for m in results.of(case)})
        axes.set_xticks(work, [f"{w:g}" for w in work])
        axes.minorticks_off()
        axes.set_xlabel(titles[case])
        axes.legend()
    (panels[0] if len(cases) > 1 else panels).set_ylabel("seconds (p50), time ~ work^p")
    return figure


PLOTS: dict[str, Callable[[Results], Any]] = {
    "beside": beside,
    "latency-quality": latency_quality,
    "steps-quality": steps_quality,
    "batch-throughput": batch_throughput,
    "timeline": timeline,
    "growth": growth,
}
