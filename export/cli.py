"""The command `edgediffusion export`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edgediffusion.engines.errors import BackendUnavailable
from edgediffusion.runtime.cli import Parser
from edgediffusion.runtime.pipeline import BUILTIN


def export(arguments: Sequence[str]) -> int:
    """`edgediffusion export`: a line per stage goes to stderr, the new folder to stdout."""
    parser = Parser("export", "Turn a torch checkpoint into a bundle: graphs beside its weights, compared with torch.")
    parser.add_argument(
        "source",
        type=Path,
        nargs="?",
        default=BUILTIN,
        metavar="SOURCE",
        help="a checkpoint of the Stable Diffusion 1.x family in diffusers' layout, or a bundle (the built-in one)",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the new folder")
    parser.add_argument("--license", metavar="TEXT", help="of the weights (what the checkpoint's model card says)")
    options = parser.parse_args(arguments)
    _report("loading torch")
    try:
        from .write_bundle import export_bundle
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"export needs {error.name}", "pip install 'edgediffusion[export]'") from error
    export_bundle(options.source, options.out, license=options.license, report=_report)
    sys.stdout.write(f"{options.out}\n")
    return 0


def _report(line: str) -> None:
    sys.stderr.write(f"{line}\n")
