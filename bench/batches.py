"""What a picture takes in a batch, beside one that is drawn alone."""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime import Pipeline

from .benchmark import picture_parser, picture_settings, run, say
from .figures import Figure, paired
from .pictures import NUM_INFERENCE_STEPS, PROMPT, SEED
from .processes import Report

PICTURES = 16


def batches(arguments: Sequence[str]) -> int:
    """The benchmark `batches`."""
    parser = picture_parser("batches", f"Time a picture of {PICTURES}, in batches of several sizes.", runs=3)
    parser.add_argument(
        "--sizes", default=f"1,4,{PICTURES}", metavar="N,N", help="of the batches; default: %(default)s"
    )
    options = parser.parse_args(arguments)
    try:
        sizes = [int(size) for size in options.sizes.split(",")]
    except ValueError:
        raise UsageError(f"sizes {options.sizes!r}; wanted numbers between commas, such as 1,{PICTURES}") from None
    settings = picture_settings("batches", options.bundle) | {"pictures": PICTURES}
    return run(settings, options, lambda folder: measure(options.bundle, sizes, options.runs, say))


def measure(bundle: Path, sizes: Sequence[int], runs: int, report: Report) -> list[Figure]:
    """The sizes in turn, after a first round that does not count; engines are open, pictures are not written."""
    with Pipeline.load(bundle) as pipeline:
        rounds = [{size: _seconds(pipeline, size) for size in sizes} for _ in _counted(runs + 1, report)][1:]
    figures = [
        Figure(name=f"a picture, {size} at once", unit="ms", values=tuple(1e3 * row[size] / PICTURES for row in rounds))
        for size in sizes
    ]
    first = figures[0]
    return figures + [
        paired(f"{first.name} / {other.name}, run by run", "x", operator.truediv, first.values, other.values)
        for other in figures[1:]
    ]


def _seconds(pipeline: Pipeline, batch_size: int) -> float:
    start = time.perf_counter()
    pipeline(PROMPT, seed=SEED, num_inference_steps=NUM_INFERENCE_STEPS, num_images=PICTURES, batch_size=batch_size)
    return time.perf_counter() - start


def _counted(rounds: int, report: Report) -> Iterator[int]:
    for number in range(rounds):
        report(f"round {number} of {rounds - 1}")
        yield number
