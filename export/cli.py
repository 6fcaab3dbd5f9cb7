"""The command `edgediffusion export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgediffusion.engines.errors import BackendUnavailable, UsageError

BUILTIN = Path(__file__).parent.parent / "runtime" / "models" / "builtin"


def export(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[SOURCE] OUT",
            help="SOURCE: a checkpoint of the SD1.x family in diffusers' layout, or a bundle; the built-in one when left "
            "out. OUT: the new folder.",
        ),
    ],
    license: Annotated[
        str | None, typer.Option(help="Licence of the weights; else what the checkpoint's model card says.")
    ] = None,
) -> None:
    """Turn a torch checkpoint into a bundle: weightless ONNX graphs beside its weights, checked against torch."""
    if len(paths) > 2:
        raise UsageError(f"got {len(paths)} folders, wanted SOURCE and OUT, or OUT alone for the built-in checkpoint")
    source, out = (BUILTIN, *paths)[-2:]
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with console.status("loading torch"):
        try:
            from .write_bundle import export_bundle
        except ModuleNotFoundError as error:
            raise BackendUnavailable(
                f"export needs {error.name}, which is not installed", "pip install 'edgediffusion[export]'"
            ) from error
        export_bundle(source, out, license=license, report=console.print)
    typer.echo(out)
