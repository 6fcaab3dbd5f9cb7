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
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from edgediffusion import __version__
from edgediffusion.engines.errors import BackendUnavailable, EdgeDiffusionError, UnknownName

from .arguments import Parser, add_backend, add_trust, opening, print_line, say_interrupted
from .memory import tune_heaps
from .tables import printable

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from .bundle import Bundle
    from .golden import Check

Command = Callable[[Sequence[str]], int]
AGAINST = "--against"  # makes `verify` a command of the export layer


def script() -> NoReturn:
    """`main` as a process: the first Ctrl-C or SIGTERM is a keyboard interrupt, others spare the cleaning up.

    After SIGTERM the status is 143. A build that cannot be stopped goes on in a thread; were Python to end beneath it,
    its next word to the log would be a crash.
    """
    terminated = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal terminated
        terminated = number == signal.SIGTERM
        for each in stops:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    # whoever started us ignores the others
    stops = [number for number, default in defaults.items() if signal.getsignal(number) is default]
    for number in stops:
        signal.signal(number, interrupt)
    tune_heaps()
    status = main()
    interrupted = status == 130
    status = 128 + signal.SIGTERM if terminated else status
    if interrupted and any(thread.daemon for thread in threading.enumerate()):
        os._exit(status)
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    An `EdgeDiffusionError`, or what the system refuses, is one line on stderr and status 2. After a keyboard interrupt,
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
            _say("error", f"out of memory ({error}); take a smaller --size or --batch-size")
            return 2
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            _say("error", f"{error}: too little memory, or too many processes, for a limit that is set (ulimit)")
            return 2
        except ImportError as error:  # of a library that is damaged, or has no room
            _say("error", f"a library cannot be loaded ({error}); see: edgediffusion doctor")
            return 2
        except KeyboardInterrupt:
            return say_interrupted()
        except BrokenPipeError:
            # What is still buffered goes nowhere, else the interpreter complains about it as it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except OSError as error:  # a name that is too long, a folder that may not be entered, a disk that fails
            _say("error", f"{error.filename}: {error.strerror}" if error.filename else error)
            return 2
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
    from .generate_command import generate as run

    return run(arguments)


def run(arguments: Sequence[str]) -> int:
    """Work through a file or a folder of jobs, for machines that nobody sits at."""
    from .run_command import run as work

    return work(arguments)


def warm(arguments: Sequence[str]) -> int:
    """Build what engines are lacking and read the weights: the next start is fast."""
    from .run_command import warm as work

    return work(arguments)


def inspect(arguments: Sequence[str]) -> int:
    """Say how a picture was made, or what a bundle holds."""
    parser = Parser("inspect", inspect.__doc__ or "")
    parser.add_argument(
        "path", type=Path, metavar="FILE_OR_BUNDLE", help="a PNG, JPEG or WebP, or the folder or pack of a bundle"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)

    from .foreign import read_manifest
    from .metadata import read_parameters
    from .packs.read import is_pack, open_pack
    from .tables import show_manifest, show_parameters

    packed = is_pack(options.path)
    if packed or options.path.is_dir():
        manifest = read_manifest(open_pack(options.path).root if packed else options.path)
        if options.json:
            print_line(manifest.to_json().rstrip())
        else:
            show_manifest(manifest)
    else:
        parameters = read_parameters(options.path)
        if options.json:
            print_line(parameters.to_json())
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
    add("bundle", type=Path, metavar="BUNDLE", help="its folder or pack; all of a pack is digested")
    add(
        AGAINST,
        metavar="SOURCE",
        help="run torch's networks of this checkpoint for it, changed by --vae, --unet, --controlnet, --lora, "
        "--embedding or --revision as for export",
    )
    add_backend(parser)
    add_trust(parser)
    add("--json", action="store_true", help="as JSON")
    return parser


def report_checks(options: argparse.Namespace, checks_of: Callable[[Bundle], Iterable[Check]]) -> int:
    """Show the checks of the bundle in `options`, those of `verify_parser`; 1 where one has failed."""
    from .bundle import Bundle
    from .engine_commands import tested_on
    from .packs.commands import check_pack
    from .tables import show_checks

    choices = opening(options)
    if check_pack(options.bundle, options.trust):
        print_line(f"{options.bundle}: a delta, sound; its graphs run once it is unpacked")
        return 0
    with Bundle.open(choices.pop("bundle"), **choices) as bundle:
        checks = list(checks_of(bundle))
    if options.json:
        print_line(json.dumps([dataclasses.asdict(check) for check in checks], indent=2))
    else:
        show_checks(checks, tested_on(options.backend))
    return 0 if all(check.passed for check in checks) else 1


def doctor(arguments: Sequence[str]) -> int:
    """Say what this machine has, which backends work on it, and what mends the rest."""
    parser = Parser("doctor", doctor.__doc__ or "")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)

    from edgediffusion.engines.probe import probe_all

    from .doctor import examine
    from .findings import find
    from .tables import show_machine

    machine, probes = examine(), probe_all()
    findings = find(probes)
    if options.json:
        found = {"machine": machine, "findings": findings, "backends": probes}
        print_line(json.dumps(found, indent=2, default=dataclasses.asdict))
    else:
        show_machine(machine, findings, probes)
    works = any(probe.works for probe in probes) and all(finding.passed for finding in findings)
    return 0 if works else 1


def schedulers(arguments: Sequence[str]) -> int:
    """List the samplers, and the sigma schedules that each can follow."""
    parser = Parser("schedulers", schedulers.__doc__ or "")
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)

    from .schedulers import SAMPLERS
    from .tables import show_samplers

    if options.json:
        keys = ("name", "diffusers", "sigmas", "calls_per_step", "draws_noise", "paper")
        print_line(json.dumps([{key: getattr(sampler, key) for key in keys} for sampler in SAMPLERS], indent=2))
    else:
        show_samplers(SAMPLERS)
    return 0


def build(arguments: Sequence[str]) -> int:
    """Build a bundle's engines for this machine's GPU, or for others."""
    from .engine_commands import build as run

    return run(arguments)


def engines(arguments: Sequence[str]) -> int:
    """List, check, remove or move the engines that were built."""
    from .engine_commands import engines as run

    return run(arguments)


def pack(arguments: Sequence[str]) -> int:
    """Write a bundle to one file, to be sent, checked and run as it is."""
    from .packs.commands import pack as run

    return run(arguments)


def unpack(arguments: Sequence[str]) -> int:
    """Write a pack's bundle to a folder; again, to go on after an interruption or to mend what was damaged."""
    from .packs.commands import unpack as run

    return run(arguments)


COMMANDS: dict[str, Command] = {
    "generate": generate,
    "run": run,
    "warm": warm,
    "pack": pack,
    "unpack": unpack,
    "build": build,
    "engines": engines,
    "schedulers": schedulers,
    "inspect": inspect,
    "verify": verify,
    "doctor": doctor,
}


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
