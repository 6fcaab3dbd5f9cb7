"""`edgediffusion bench BUNDLE`: every case, ours and the peers in turn."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from edgediffusion.engines.errors import UnknownName, UsageError
from edgediffusion.export.options import DTYPES
from edgediffusion.runtime.arguments import Parser, add_backend
from edgediffusion.runtime.bundle import Bundle
from edgediffusion.runtime.latents import LatentSpace
from edgediffusion.runtime.pipeline import BUILTIN

from .benchmark import positive, say
from .cases import CASES
from .contenders import find, interpreters
from .html import write_html
from .machine import bundle_digest, load_average, machine
from .pictures import write_checkpoint
from .processes import limited_to
from .report import check_new_file, write_text
from .schema import Results
from .session import PROMPT, SEED, Session, Settings
from .tables import show
from .workers import PEERS

PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
    "nv_tensorrt_rtx": ["NvTensorRTRTXExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}


def suite(arguments: Sequence[str]) -> int:
    """Measure a model beside its peers; tables go to stdout, everything to --json and --html."""
    options = _options(arguments)
    check_new_file(options.json)
    check_new_file(options.html, "html")
    pythons = interpreters(options.python, options.against)
    bundle = _bundle(options)
    with limited_to(options.cores), tempfile.TemporaryDirectory(prefix="edgediffusion-") as folder:
        results = measure(bundle, Path(folder), options, pythons, say)
    show(results)
    if options.json is not None:
        write_text(options.json, results.to_json())
    if options.html is not None:
        write_html(options.html, results)
    return 0


def measure(
    bundle: Path, folder: Path, options: argparse.Namespace, pythons: dict[str, str], report: Callable[[str], None]
) -> Results:
    """Run `options.cases` one after the other.

    Raises:
        BundleError: `bundle` is none.
        EdgeDiffusionError: we fail; a peer that fails is left out from there on.
    """
    with Bundle.open(bundle) as opened:
        manifest = opened.manifest
        space = LatentSpace.from_configs(opened.config("unet/config.json"), opened.config("vae_decoder/config.json"))
    height = space.height if manifest.static is None else manifest.static.height
    before = machine(options.cores)
    request: dict[str, Any] = {
        "backend": options.backend,
        "device": options.device,
        "build": options.build,
        "dtype": manifest.graphs["unet"].dtype,
        "family": manifest.family,
        "threads": options.cores,
        "providers": PROVIDERS[options.device],
    }
    sources = {"bundle": bundle}
    if any(PEERS[name].reads == "checkpoint" for name in options.against):
        sources["checkpoint"] = write_checkpoint(bundle, folder, report)
    contenders, skipped = find(options.against, pythons, request, sources)
    settings = Settings(
        rounds=options.rounds,
        steps=options.num_inference_steps,
        guidance_scale=options.guidance_scale,
        batches=options.batches,
        latent=height // space.pixels_per_latent,
        factor=space.pixels_per_latent,
        backend=options.backend,
        device=options.device,
        reference=options.reference or bundle,
    )
    with Session(
        bundle=bundle,
        manifest=manifest,
        settings=settings,
        contenders=contenders,
        folder=folder,
        report=report,
    ) as session:
        for line in skipped:
            session.skip(line)
        for name in options.cases:
            CASES[name](session)
    described = {
        "model": manifest.source,
        "bundle_digest": bundle_digest(bundle),
        "dtype": manifest.graphs["unet"].dtype,
        "backend": options.backend,
        "device": options.device,
        "rounds": options.rounds,
        "prompt": PROMPT,
        "seed": SEED,
        "guidance_scale": options.guidance_scale,
        "num_inference_steps": options.num_inference_steps,
    }
    return Results(
        settings=described,
        machine=before | {"load_average_after": load_average(), "contenders": session.versions},
        measurements=tuple(session.measurements),
        timeline=tuple(session.timeline),
        skipped=tuple(session.skipped),
    )


def _bundle(options: argparse.Namespace) -> Path:
    if options.random is None:
        return Path(options.bundle).absolute()
    from .random_model import random_bundle

    return random_bundle(options.random, DTYPES[options.dtype], report=say)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("bench", suite.__doc__ or "")
    add = parser.add_argument
    add("bundle", nargs="?", metavar="BUNDLE", help="the folder of the model; default: the built-in one")
    add("--random", choices=("sd15", "sd21", "sdxl"), help="random weights in a real shape instead; exported once")
    add("--dtype", choices=DTYPES, default="fp32", help="what the graphs of --random compute in; default: %(default)s")
    add("--cases", type=_names, default=list(CASES), metavar="NAME,...", help=f"of {', '.join(CASES)}; default: all")
    add("--against", type=_names, default=[], metavar="PEER,...", help=f"of {', '.join(PEERS)}")
    add("--python", action="append", default=[], metavar="PEER=PATH", help="the interpreter that has a peer")
    add("--reference", type=Path, metavar="BUNDLE", help="in fp32, for the PSNR where diffusers isn't installed")
    add("--num-inference-steps", type=positive, default=20, metavar="N", help="of a picture; default: %(default)s")
    add("--guidance-scale", type=float, default=7.5, metavar="W", help="1: no guidance; default: %(default)s")
    batches_help = "pictures at once, for throughput and growth; default: %(default)s"
    add("--batches", type=_batches, default="1,2,4,8,16", metavar="N,...", help=batches_help)
    add("--rounds", type=positive, default=10, metavar="N", help="in which all take turns; default: %(default)s")
    add("--cores", type=positive, default=2, metavar="N", help="that all processes share; default: %(default)s")
    add("--json", type=Path, metavar="FILE", help="write every call's time and the machine's facts to FILE")
    add("--html", type=Path, metavar="FILE", help="write a report with plots to FILE, which opens offline")
    add_backend(parser)
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = "cuda" if PROVIDERS["cuda"][0] in onnxruntime.get_available_providers() else "cpu"
    for kind, known, names in (("case", CASES, options.cases), ("peer", PEERS, options.against)):
        if unknown := [name for name in names if name not in known]:
            raise UnknownName(kind, unknown[0], known)
    if options.device not in PROVIDERS:
        raise UnknownName("device", options.device, PROVIDERS)
    if options.random is not None and options.bundle is not None:
        raise UsageError(f"--random {options.random} and the bundle {options.bundle}; give one of them")
    options.bundle = BUILTIN if options.bundle is None else options.bundle
    options.cases = [name for name in CASES if name in options.cases]
    return options


def _names(text: str) -> list[str]:
    return text.split(",")


def _batches(text: str) -> tuple[int, ...]:
    return tuple(map(positive, text.split(",")))
