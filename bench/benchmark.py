"""What all benchmarks share: their options, and the way from figures to the screen and to a file."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from edgediffusion.runtime.arguments import Parser
from edgediffusion.runtime.manifest import Manifest
from edgediffusion.runtime.pipeline import BUILTIN

from .figures import Figure
from .pictures import NUM_INFERENCE_STEPS, PROMPT
from .processes import limited_to
from .report import Facts, check_new_file, environment, show, write_json


def parser_with_runs(name: str, description: str, *, runs: int) -> Parser:
    """A parser with --runs (default: `runs`), --cores and --json."""
    parser = Parser(f"bench {name}", description)
    add = parser.add_argument
    add("--runs", type=positive, default=runs, metavar="N", help="that count, after a warm-up; default: %(default)s")
    add("--cores", type=positive, default=2, metavar="N", help="that all processes share; default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write every run's figures and the environment to FILE")
    return parser


def picture_parser(name: str, description: str, *, runs: int) -> Parser:
    """The same with --bundle."""
    parser = parser_with_runs(name, description, runs=runs)
    parser.add_argument(
        "--bundle", type=Path, default=BUILTIN, metavar="DIR", help="the folder of the model; default: the built-in one"
    )
    return parser


def picture_settings(name: str, bundle: Path) -> Facts:
    """What the benchmark `name` draws, and with what.

    Raises:
        BundleError: `bundle` is no bundle.
    """
    return {
        "benchmark": name,
        "model": Manifest.read(bundle).source,
        "prompt": PROMPT,
        "num_inference_steps": NUM_INFERENCE_STEPS,
    }


def run(settings: Facts, options: argparse.Namespace, measure: Callable[[Path], list[Figure]]) -> int:
    """Measure on `options.cores` cores, in a temporary folder, and show the figures; they go to `options.json` too.

    Raises:
        UsageError: there are fewer cores, or the file cannot be written.
    """
    check_new_file(options.json)
    before = environment(options.cores)
    with limited_to(options.cores), tempfile.TemporaryDirectory(prefix="edgediffusion-") as folder:
        figures = measure(Path(folder))
    show(settings, before, figures)
    if options.json is not None:
        write_json(options.json, settings, before, figures)
    return 0


def say(line: str) -> None:
    """What is under way."""
    sys.stderr.write(f"{line}\n")


def positive(text: str) -> int:
    """For `type`: 1 or more."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted 1 or more")
    return number
