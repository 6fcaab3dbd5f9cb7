"""The arguments that commands have in common: how they are read, and what is said of them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from edgediffusion.engines.errors import UsageError


class Parser(argparse.ArgumentParser):
    """Reads the arguments of one command. What it cannot use is a `UsageError`, as everywhere else."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"edgediffusion {command}".rstrip(), description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise what `main` prints as one line."""
        raise UsageError(f"{message}; see: {self.prog} --help")


def add_backend(parser: Parser) -> None:
    """Which backend runs the engines, where, and whether it may build them."""
    add = parser.add_argument
    add("--backend", default="ort", metavar="NAME", help="default: %(default)s")
    providers = "for ort: cpu, cuda, tensorrt, nv_tensorrt_rtx; default: %(default)s"
    add("--device", "--provider", default="auto", metavar="NAME", help=providers)
    add("--no-build", dest="build", action="store_false", help="fail where an engine is lacking that could be built")


def add_model(parser: Parser) -> None:
    """The bundle, and see `add_backend`."""
    help_text = "the folder or pack of the model; default: the built-in one"
    parser.add_argument("--bundle", type=Path, metavar="DIR", help=help_text)
    add_backend(parser)


def add_low_memory(parser: Parser) -> None:
    """See `Pipeline.load`."""
    help_text = "load each network when it is needed and free it after that, draw one picture at a time"
    parser.add_argument("--low-memory", action="store_true", help=help_text)


def add_trust(parser: Parser) -> None:
    """Whose packs are taken."""
    help_text = "refuse a pack that this public key did not sign: a PEM file of Ed25519"
    parser.add_argument("--trust", type=Path, metavar="KEY", help=help_text)


def opening(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_model` has read, as `Bundle.open` and `Pipeline.load` take them."""
    return {name: getattr(options, name) for name in ("bundle", "backend", "device", "build")}


def utf8(text: str) -> str:
    """For `type`: what can be written to a file."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from None
    return text


def print_line(line: str) -> None:
    """Write what a command answers, at once: for pipes."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def say_interrupted() -> int:
    """Tell of a keyboard interrupt, and return the exit status of a command that it ended."""
    sys.stderr.write("edgediffusion: interrupted\n")
    return 130
