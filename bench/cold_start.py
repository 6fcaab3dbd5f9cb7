"""How long it takes from a cold process to the PNG it writes, beside diffusers, and where the time goes."""

from __future__ import annotations

import itertools
import json
import operator
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from .benchmark import picture_parser, picture_settings, run, say
from .figures import Figure, paired
from .pictures import OURS, THEIRS, drawing_commands, staged_command
from .processes import Execution, Report, in_turn

_STAGED = "edgediffusion in stages"
_STEP = "  one denoising step (median of its run)"


def cold_start(arguments: Sequence[str]) -> int:
    """The benchmark `cold-start`."""
    parser = picture_parser("cold-start", "Time from a cold process to the PNG, in turn with diffusers.", runs=10)
    options = parser.parse_args(arguments)
    settings = picture_settings("cold-start", options.bundle)
    return run(settings, options, lambda folder: measure(options.bundle.absolute(), options.runs, folder, say))


def measure(bundle: Path, runs: int, folder: Path, report: Report) -> list[Figure]:
    """Whole processes first, then the stages of others that do the same."""
    drawn = in_turn(drawing_commands(bundle, folder, report), runs, folder, report)
    figures = [seconds(name, executions) for name, executions in drawn.items()]
    if THEIRS in drawn:
        ours, theirs = figures
        figures.append(paired(f"{THEIRS} / {OURS}, run by run", "x", operator.truediv, theirs.values, ours.values))
    for name, executions in drawn.items():
        values = tuple(execution.cpu_seconds for execution in executions)
        figures.append(Figure(name=f"{name}, processor time", unit="s", values=values))
    staged = in_turn({_STAGED: staged_command(bundle)}, runs, folder, report)[_STAGED]
    table = [stages(execution) for execution in staged]
    figures.append(seconds(_STAGED, staged))
    figures += [Figure(name=name, unit="s", values=tuple(row[name] for row in table)) for name in table[0]]
    return figures


def seconds(name: str, executions: Iterable[Execution]) -> Figure:
    """Wall clock of whole processes."""
    return Figure(name=name, unit="s", values=tuple(execution.seconds for execution in executions))


def stages(execution: Execution) -> dict[str, float]:
    """Seconds of each stage, in order; they add up to those of the process. Then those of the median step.

    The process printed `ends`, when each stage ended, and `step_ends`, when each denoising step did.
    """
    printed = json.loads(execution.output)
    ends: dict[str, float] = printed["ends"] | {"exit": execution.ended}
    spans = itertools.pairwise([execution.started, *ends.values()])
    result = {f"  {name}": end - start for name, (start, end) in zip(ends, spans, strict=True)}
    steps = itertools.pairwise([ends["text encoder"], *printed["step_ends"]])
    return result | {_STEP: statistics.median(end - start for start, end in steps)}
