"""The command `edgediffusion bench`."""

from __future__ import annotations

from collections.abc import Sequence

from edgediffusion.runtime.arguments import Parser
from edgediffusion.runtime.cli import Command

from .batches import batches
from .cold_start import cold_start
from .footprint import footprint
from .scheduler_step import scheduler_step

BENCHMARKS: dict[str, Command] = {
    "batches": batches,
    "cold-start": cold_start,
    "footprint": footprint,
    "scheduler-step": scheduler_step,
}


def bench(arguments: Sequence[str]) -> int:
    """`edgediffusion bench`: the figures go to stdout, what is under way to stderr."""
    parser = Parser("bench", "Measure on this machine what the README states.")
    parser.usage = "edgediffusion bench BENCHMARK ..."
    parser.add_argument(
        "benchmark",
        choices=BENCHMARKS,
        help="how long a picture takes, alone or in a batch, what it takes in memory and on disk, or a sampler's step",
    )
    benchmark = parser.parse_args(arguments[:1]).benchmark
    return BENCHMARKS[benchmark](arguments[1:])
