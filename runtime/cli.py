"""The command `edgediffusion`.

Nothing heavy is imported before a command needs it. A command is a function from its arguments to the exit status, with
a `Parser` of its own. Those of the upper layers are entry points of the group `edgediffusion.commands`, loaded when
they are called; the pip extra that a command needs has the command's name.

argparse rather than typer: typer 0.29 imports pydantic, 0.22 s of every start, and hides the errors to catch in private
modules.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from edgediffusion import __version__
from edgediffusion.engines.errors import BackendUnavailable, EdgeDiffusionError, UnknownName, UsageError

from .tables import printable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from .bundle import Bundle
    from .golden import Check
    from .loop import Step
    from .run import Run

Command = Callable[[Sequence[str]], int]
AGAINST = "--against"  # makes `verify` a command of the export layer


class Parser(argparse.ArgumentParser):
    """Reads the arguments of one command. What it cannot use is a `UsageError`, as everywhere else."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"edgediffusion {command}".rstrip(), description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise what `main` prints as one line."""
        raise UsageError(f"{message}; see: {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    An `EdgeDiffusionError`, or too little memory, is one line on stderr and status 2. After a keyboard interrupt,
    which is a line too, the status is 130, and 141 when nobody reads stdout any more.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            status = _run(sys.argv[1:] if arguments is None else arguments)
            sys.stdout.flush()
        except EdgeDiffusionError as error:
            _say("error", error)
            return 2
        except MemoryError as error:
            _say("error", f"out of memory ({error}); take a smaller --size or fewer --num-images")
            return 2
        except KeyboardInterrupt:
            sys.stderr.write("edgediffusion: interrupted\n")
            return 130
        except BrokenPipeError:
            # What is still buffered goes nowhere, else the interpreter complains about it as it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
    return status


def _run(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else None
    try:
        if name in COMMANDS:
            return COMMANDS[name](arguments[1:])
        from importlib.metadata import entry_points

        upper = {entry.name: entry for entry in entry_points(group="edgediffusion.commands")}
        if name in upper:
            return _load(upper[name])(arguments[1:])
        parser = _main_parser(upper)
        parser.parse_args(arguments[:1])
        if name is not None:
            raise UnknownName("command", name, [*COMMANDS, *upper])
        parser.print_help(sys.stderr)
        return 2
    except SystemExit as done:  # argparse after --help and --version, rich after a closed pipe
        return int(done.code or 0)


def _main_parser(upper: Iterable[str]) -> Parser:
    parser = Parser("", "Stable Diffusion without PyTorch.")
    parser.usage = "edgediffusion COMMAND ..."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    lines = [f"  {name:10} {run.__doc__}" for name, run in COMMANDS.items()]
    lines += [f"  {name:10} (needs: pip install 'edgediffusion[{name}]')" for name in upper]
    parser.epilog = "\n".join(["commands:", *lines])
    parser.add_argument("--version", action="version", version=f"edgediffusion {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    return parser


def _load(entry: EntryPoint) -> Command:
    try:
        command: Command = entry.load()
    except ModuleNotFoundError as error:
        raise BackendUnavailable(
            f"{entry.name} needs {error.name}, which is not installed", f"pip install 'edgediffusion[{entry.name}]'"
        ) from error
    return command


def generate(arguments: Sequence[str]) -> int:
    """Draw pictures of a prompt, and print the names of their files."""
    options = _generate_options(arguments)

    from .output import Output, default_path

    path = default_path(options.prompt) if options.output is None else options.output
    output = Output(path, several=options.num_images > 1, force=options.force)

    from .images import open_image
    from .pipeline import Pipeline
    from .settings import Settings

    settings: Any = {name: value for name, value in vars(options).items() if name in Settings.__annotations__}
    settings |= {name: open_image(path) for name in ("image", "mask") if (path := settings[name]) is not None}
    settings["control_images"] = [open_image(path) for path in options.control_image]
    settings["width"], settings["height"] = options.size
    with Pipeline.load(**_opening(options)) as pipeline:
        run = pipeline.steps(options.prompt, options.negative_prompt, **settings)
        for step in _with_progress(run):
            latents = step.latents
        for picture in run.images(latents):
            _print(str(output.write(picture)))
    return 0


def _generate_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("generate", generate.__doc__ or "")
    add = parser.add_argument
    add("prompt", type=_text, help="what to draw")
    add("-o", "--output", type=Path, metavar="FILE", help="the PNG to write; named after the prompt when left out")
    add("--force", action="store_true", help="overwrite FILE; else the next free number is added to its name")
    add("--negative-prompt", type=_text, default="", metavar="TEXT", help="what not to draw")
    add("--prompt-2", type=_text, metavar="TEXT", help="for SDXL's second text encoder; default: the prompt")
    add("--negative-prompt-2", type=_text, metavar="TEXT", help="for the same; default: the negative prompt")
    add("--num-inference-steps", type=int, metavar="N", help="default: what suits the model")
    add("--scheduler", metavar="NAME", help="see: edgediffusion schedulers; default: the model's own")
    add(
        "--sigmas",
        type=_sigmas,
        metavar="NAME",
        help="a sigma schedule, or numbers between commas; default: the model's",
    )
    add("--guidance-scale", type=float, metavar="X", help="default: what suits the model; 1 is no guidance")
    add("--seed", type=int, metavar="N", help="default: a random one; the picture remembers it")
    add("--noise", default="numpy", metavar="NAME", help="numpy, torch-cpu or torch-cuda; default: %(default)s")
    add(
        "--size", type=_size, default=(None, None), metavar="WxH", help="in pixels; default: what the model is made for"
    )
    add("--init-image", type=Path, dest="image", metavar="FILE", help="a picture to start from, resized to --size")
    add("--strength", type=float, metavar="X", help="how much of it may change, 0 to 1; default: what suits the model")
    add("--mask", type=Path, metavar="FILE", help="with a model that inpaints: what is light in it is drawn anew")
    add(
        "--control-image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="for a ControlNet of the model; once for each",
    )
    add(
        "--controlnet-conditioning-scale",
        type=float,
        action="append",
        metavar="X",
        help="how much it has to say; once for each, default: 1",
    )
    add("--image-guidance-scale", type=float, metavar="X", help="how closely instruct-pix2pix keeps to the picture")
    add("--num-images", type=int, default=1, metavar="N", help="default: %(default)s")
    add("--bundle", type=Path, metavar="DIR", help="the folder of the model; default: the built-in one")
    _add_backend(parser)
    return parser.parse_args(arguments)


def _add_backend(parser: Parser) -> None:
    add = parser.add_argument
    add("--backend", default="ort", metavar="NAME", help="default: %(default)s")
    providers = "for ort: cpu, cuda, tensorrt, nv_tensorrt_rtx; default: %(default)s"
    add("--device", "--provider", default="auto", metavar="NAME", help=providers)
    add("--no-build", dest="build", action="store_false", help="fail where an engine is lacking that could be built")


def _opening(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("bundle", "backend", "device", "build")}


def inspect(arguments: Sequence[str]) -> int:
    """Say how a picture was made, or what a bundle holds."""
    parser = Parser("inspect", inspect.__doc__ or "")
    parser.add_argument("path", type=Path, metavar="FILE_OR_BUNDLE", help="a PNG, or the folder of a bundle")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)

    from .foreign import read_manifest
    from .metadata import read_parameters
    from .tables import show_manifest, show_parameters

    if options.path.is_dir():
        manifest = read_manifest(options.path)
        if options.json:
            _print(manifest.to_json().rstrip())
        else:
            show_manifest(manifest)
    else:
        parameters = read_parameters(options.path)
        if options.json:
            _print(parameters.to_json())
        else:
            show_parameters(parameters)
    return 0


def verify(arguments: Sequence[str]) -> int:
    """Compare the graphs of a bundle, as they run here, with torch's outputs that it carries, or with torch."""
    if any(argument.partition("=")[0] == AGAINST for argument in arguments):
        from importlib.metadata import entry_points

        (entry,) = entry_points(group="edgediffusion.verify", name="export")
        return _load(entry)(arguments)
    options = verify_parser().parse_args(arguments)

    from .golden import verify as checks_of

    return report_checks(options, checks_of)


def verify_parser() -> Parser:
    """What `verify` takes, in its upper half too."""
    parser = Parser("verify", verify.__doc__ or "")
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="its folder")
    add(
        AGAINST,
        metavar="SOURCE",
        help="run torch's networks of this checkpoint for it, changed by --vae, --unet, --controlnet, --lora, "
        "--embedding or --revision as for export",
    )
    _add_backend(parser)
    add("--json", action="store_true", help="as JSON")
    return parser


def report_checks(options: argparse.Namespace, checks_of: Callable[[Bundle], Iterable[Check]]) -> int:
    """Show the checks of the bundle in `options`, those of `verify_parser`; 1 where one has failed."""
    from .bundle import Bundle
    from .engine_commands import tested_on
    from .tables import show_checks

    opening = _opening(options)
    with Bundle.open(opening.pop("bundle"), **opening) as bundle:
        checks = list(checks_of(bundle))
    if options.json:
        _print(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        show_checks(checks, tested_on(options.backend))
    return 0 if all(check.passed for check in checks) else 1


def doctor(arguments: Sequence[str]) -> int:
    """Say which backends and devices work on this machine, and what mends the others."""
    parser = Parser("doctor", doctor.__doc__ or "")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)

    from edgediffusion.engines.probe import probe_all

    from .doctor import examine
    from .tables import show_machine

    machine, probes = examine(), probe_all()
    if options.json:
        backends = [dataclasses.asdict(probe) for probe in probes]
        _print(json.dumps({"machine": dataclasses.asdict(machine), "backends": backends}, indent=2))
    else:
        show_machine(machine, probes)
    return 0 if any(probe.works for probe in probes) else 1


def schedulers(arguments: Sequence[str]) -> int:
    """List the samplers, and the sigma schedules that each can follow."""
    parser = Parser("schedulers", schedulers.__doc__ or "")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)

    from .schedulers import SAMPLERS
    from .tables import show_samplers

    if options.json:
        keys = ("name", "diffusers", "sigmas", "calls_per_step", "draws_noise", "paper")
        _print(json.dumps([{key: getattr(sampler, key) for key in keys} for sampler in SAMPLERS], indent=2))
    else:
        show_samplers(SAMPLERS)
    return 0


def build(arguments: Sequence[str]) -> int:
    """Build a bundle's engines for this machine's GPU, or for others."""
    from .engine_commands import build as run

    return run(arguments, _print)


def engines(arguments: Sequence[str]) -> int:
    """List, check, remove or move the engines that were built."""
    from .engine_commands import engines as run

    return run(arguments, _print)


COMMANDS: dict[str, Command] = {
    "generate": generate,
    "build": build,
    "engines": engines,
    "schedulers": schedulers,
    "inspect": inspect,
    "verify": verify,
    "doctor": doctor,
}


def _with_progress(run: Run) -> Iterable[Step]:
    if not sys.stderr.isatty():
        return run
    from rich.console import Console
    from rich.progress import track

    return track(run, "denoising", len(run), console=Console(stderr=True), transient=True)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted WIDTHxHEIGHT, such as 512x512")
    return int(match[1]), int(match[2])


def _sigmas(text: str) -> str | tuple[float, ...]:
    if not text[:1].isdigit():
        return text
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}, wanted a name or numbers between commas, such as 14.6,2.5,0.4"
        ) from None


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from None
    return text


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _say(kind: str, message: object) -> None:
    line = printable(" ".join(str(message).splitlines()))
    sys.stderr.write(f"edgediffusion: {kind}: {line}\n")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _say("warning", message)
