"""The commands `edgediffusion export` and `edgediffusion verify --against`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgediffusion.engines.errors import BackendUnavailable
from edgediffusion.runtime.arguments import Parser
from edgediffusion.runtime.cli import AGAINST, report_checks, verify_parser
from edgediffusion.runtime.manifest import Static
from edgediffusion.runtime.pipeline import BUILTIN

from .options import DTYPES, WEIGHTS, Options


def export(arguments: Sequence[str]) -> int:
    """`edgediffusion export`: a line per stage goes to stderr, the new folder to stdout."""
    flags: dict[str, Any] = vars(_parser().parse_args(arguments))
    source, out, back = (flags.pop(name) for name in ("source", "out", "to_diffusers"))
    options = _options(flags)
    with _reporting() as report:
        report("loading torch")
        with _needing_torch("export"):
            from .to_diffusers import to_diffusers
            from .write_bundle import export_bundle
        if back:
            to_diffusers(Path(source), out)
        else:
            export_bundle(source, out, options, report)
    sys.stdout.write(f"{out}\n")
    return 0


def verify_against(arguments: Sequence[str]) -> int:
    """`edgediffusion verify --against`: 1 where a graph is off by more than its tolerance."""
    parser = verify_parser()
    _add_overrides(parser.add_argument)
    options = parser.parse_args(arguments)
    overrides = _options({name: value for name, value in vars(options).items() if name in Options.__annotations__})
    with _needing_torch(f"verify {AGAINST}"):
        from .against import checks_against
    return report_checks(options, lambda bundle: checks_against(bundle, options.against, overrides))


def _options(flags: dict[str, Any]) -> Options:
    lists: dict[str, Any] = {name: tuple(value) for name, value in flags.items() if isinstance(value, list)}
    return Options(**flags | lists)


@contextmanager
def _needing_torch(command: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"{command} needs {error.name}", "pip install 'edgediffusion[export]'") from error


def _parser() -> Parser:
    parser = Parser("export", "Turn a torch checkpoint into a bundle: graphs beside its weights, compared with torch.")
    add = parser.add_argument
    add(
        "source",
        nargs="?",
        default=str(BUILTIN),
        metavar="SOURCE",
        help="a folder in diffusers' layout, a .safetensors file, a hub's repository, or a bundle (the built-in one)",
    )
    add("out", type=Path, metavar="OUT", help="the new folder")
    add(
        "--dtype",
        type=_dtype,
        action=_Update,
        default={},
        metavar="[COMPONENT=]DTYPE",
        help=f"what graphs compute in: {', '.join(DTYPES)}; one component with vae_decoder=fp32",
    )
    add("--weights", choices=WEIGHTS, help="store the weights in this form, computing as --dtype says")
    add("--opset", type=int, default=Options.opset, metavar="N", help="of ONNX, 18 to 23; default: %(default)s")
    add(
        "--static",
        type=_static,
        metavar="BxHxW",
        help="graphs for B pictures of that height and width in pixels only, such as 1x512x512; default: for any",
    )
    _add_overrides(add)
    add("--license", metavar="TEXT", help="of the weights (what the checkpoint's model card says)")
    add("--resume", action="store_true", help="keep what an interrupted export to OUT has finished")
    add("--to-diffusers", action="store_true", help="the other way: SOURCE is a bundle, OUT a checkpoint for diffusers")
    return parser


def _add_overrides(add: Callable[..., object]) -> None:
    """What changes a source."""
    add("--vae", metavar="SOURCE", help="take the VAE from there")
    add("--unet", metavar="SOURCE", help="take the UNet from there")
    add("--controlnet", dest="controlnets", **_REPEATED, metavar="SOURCE", help="add a ControlNet; repeatable")
    add("--lora", dest="loras", type=_lora, **_REPEATED, metavar="FILE[:SCALE]", help="fuse a LoRA; repeatable")
    add(
        "--embedding",
        dest="embeddings",
        type=Path,
        **_REPEATED,
        metavar="FILE",
        help="add a textual inversion; repeatable",
    )
    add("--revision", metavar="REV", help="a branch, tag or commit of the hub's repository")


_REPEATED: dict[str, Any] = {"action": "append", "default": []}


class _Update(argparse.Action):
    """Collects pairs into a new dict."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: object = None) -> None:
        setattr(namespace, self.dest, {**getattr(namespace, self.dest), values[0]: values[1]})


def _dtype(text: str) -> tuple[str, str]:
    component, _, name = text.rpartition("=")
    if name not in DTYPES:
        raise argparse.ArgumentTypeError(f"{name!r}, known: {', '.join(DTYPES)}")
    return component, DTYPES[name]


def _static(text: str) -> Static:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted BATCHxHEIGHTxWIDTH, such as 1x512x512")
    batch, height, width = map(int, match.groups())
    return Static(batch=batch, height=height, width=width)


def _lora(text: str) -> tuple[Path, float]:
    file, colon, scale = text.rpartition(":")
    if not (colon and re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", scale)):
        return Path(text), 1.0
    return Path(file), float(scale)


@contextmanager
def _reporting() -> Iterator[Callable[[str], None]]:
    """What shows a line on stderr; on a terminal with the time, and a spinner below."""
    if not sys.stderr.isatty():
        yield _write_line
        return
    from rich.console import Console

    console = Console(stderr=True, markup=False, emoji=False, highlight=False, log_path=False, soft_wrap=True)
    with console.status(""):
        yield console.log


def _write_line(line: str) -> None:
    sys.stderr.write(f"{line}\n")
