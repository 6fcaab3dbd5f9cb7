"""The command `edgediffusion bench`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

# By name: the module and the function in it. What isn't named here is a bundle, or an option of `suite`.
BENCHMARKS = {
    "cold-start": ("cold_start", "cold_start"),
    "footprint": ("footprint", "footprint"),
    "loop-overhead": ("loop_overhead", "loop_overhead"),
    "scheduler-step": ("scheduler_step", "scheduler_step"),
    "compare": ("compare", "compare"),
    "plot": ("plots", "plot"),
}


def bench(arguments: Sequence[str]) -> int:
    """`edgediffusion bench`: the figures go to stdout, what is under way to stderr."""
    if arguments and arguments[0] in BENCHMARKS:
        module, function = BENCHMARKS[arguments[0]]
        rest = arguments[1:]
    else:
        module, function, rest = "suite", "suite", arguments
    command = getattr(importlib.import_module(f".{module}", __package__), function)
    return int(command(rest))
