"""The commands `edgediffusion build` and `edgediffusion engines`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from edgediffusion import __version__
from edgediffusion.engines.archive import export_engines, import_engines
from edgediffusion.engines.errors import BackendUnavailable, UnknownName, UsageError
from edgediffusion.engines.profile import Profile
from edgediffusion.engines.recipe import Target
from edgediffusion.engines.registry import BACKENDS
from edgediffusion.engines.store import DamagedEngine, Entry, Store
from edgediffusion.engines.tensorrt_build import BuildOptions
from edgediffusion.engines.tensorrt_store import BUNDLE_STORE, Job, ensure, here, memory_needed
from edgediffusion.engines.tensorrt_versions import TensorRT, load

from .arguments import Parser, print_line
from .build_plan import Wanted, parts_of
from .bundle import Bundle
from .latents import LatentSpace
from .memory import free_memory
from .progress import bars
from .tables import show_engines

_FLAGS = {
    "weight_stripped": "leave the weights out of the plan; they are read from the bundle when it is opened",
    "weight_streaming": "let weights that do not fit into the GPU's memory come from the host's in each run",
    "refit": "let the weights be replaced",
    "version_compatible": "let later versions of TensorRT load it",
    "hardware_compatible": "for any GPU since Ampere, at some cost in speed",
}
_BUILDING = sorted(name for name, backend in BACKENDS.items() if backend.builds)


def _build_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("build", build.__doc__ or "")
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="its folder")
    add("--backend", default=_BUILDING[0], metavar="NAME", help=f"{' or '.join(_BUILDING)}; default: %(default)s")
    add("--shapes", type=_shapes, metavar="WxH,...", help="in pixels; several are profiles of one engine")
    add("--batch", type=_batch, default=(1, 1), metavar="N", help="pictures at a time, such as 2 or 1-4; default: 1")
    add("--dynamic", action="store_true", help="any size between the least and the largest of --shapes")
    add("--prompt-chunks", type=int, default=1, metavar="N", help="of 75 tokens, that a prompt may have; default: 1")
    add("--component", action="append", metavar="NAME", help="build this one only; repeatable")
    add("--optimization-level", type=int, metavar="N", help="0 to 5: how long to look for fast kernels")
    add("--workspace", type=_mebibytes, metavar="MIB", help="the memory that a kernel may use at most")
    add("--timing-cache", action="store_true", help="keep what kernels took, for the next build on this GPU")
    for name, text in _FLAGS.items():
        add(f"--{name.replace('_', '-')}", action="store_true", help=text)
    add(
        "--compute-capability",
        type=_between_commas,
        default=(),
        metavar="X.Y,...",
        help="build for these GPUs; none is needed",
    )
    add("--jobs", type=int, default=1, metavar="N", help="components at a time; default: %(default)s")
    add("--in-bundle", action="store_true", help=f"into BUNDLE/{BUNDLE_STORE}, in place of the user's cache")
    return parser.parse_args(arguments)


def build(arguments: Sequence[str]) -> int:
    """Build a bundle's engines for this machine's GPU, or for others."""
    options = _build_options(arguments)
    if options.backend not in _BUILDING:
        raise UnknownName("backend that builds engines", options.backend, _BUILDING)
    if options.jobs < 1:
        raise UsageError(f"--jobs {options.jobs}, wanted 1 or more")
    tensorrt = load(options.backend)
    choices = BuildOptions(
        optimization_level=options.optimization_level,
        workspace=options.workspace,
        timing_cache=_timing_cache(tensorrt) if options.timing_cache else None,
        compute_capability=options.compute_capability,
        **{name: getattr(options, name) for name in _FLAGS},
    )
    choices.check(tensorrt)
    jobs = list(_jobs(options))
    store = Store(options.bundle / BUNDLE_STORE) if options.in_bundle else Store.of_user()
    _check_memory(tensorrt, [job for job, _ in jobs], options.jobs)
    stop = threading.Event()
    pool = ThreadPoolExecutor(options.jobs)
    try:
        with bars() as shown:
            futures = [
                pool.submit(ensure, tensorrt, job, profiles, choices, store, shown.building(job.spec.name), stop)
                for job, profiles in jobs
            ]
            for future in futures:
                while not future.done():  # with TensorRT 8.6 an endless wait hears of no interrupt, see in_a_thread
                    wait([future], timeout=0.1)
                print_line(str(future.result().plan))
    except BaseException:
        stop.set()
        raise
    finally:
        # What TensorRT 8.6 builds cannot be stopped: `script` leaves it behind, half-written is nothing.
        pool.shutdown(wait=not stop.is_set() or tensorrt.version.has_progress, cancel_futures=True)
    return 0


def _jobs(options: argparse.Namespace) -> Iterator[tuple[Job, Sequence[Profile]]]:
    with Bundle.open(options.bundle) as bundle:
        space = LatentSpace.from_configs(bundle.config("unet/config.json"), bundle.config("vae_decoder/config.json"))
        sizes = options.shapes or ((space.width, space.height),)
        if (static := bundle.manifest.static) is not None:
            sizes = ((static.width, static.height),)
        wanted = Wanted(sizes=sizes, batch=options.batch, dynamic=options.dynamic, prompt_chunks=options.prompt_chunks)
        parts = {part.spec.name: part for part in parts_of(bundle.manifest, bundle.family, space, wanted)}
        for name in options.component or parts:
            if name not in parts:
                raise UnknownName("component", name, parts)
            part = parts[name]
            yield Job.of(bundle.folder / part.model, part.spec, part.precision), part.profiles


def _timing_cache(tensorrt: TensorRT) -> Path:
    """One for each GPU, version and driver."""
    target = here(tensorrt)
    name = "-".join((target.backend, target.version, target.gpu, target.compute_capability, target.driver))
    return Store.of_user().folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}.timing"


def _check_memory(tensorrt: TensorRT, jobs: Sequence[Job], at_once: int) -> None:
    needed = tensorrt.version.builder_bytes + sum(sorted(map(memory_needed, jobs))[-at_once:])
    free = free_memory()
    if free is not None and needed > free:
        raise UsageError(
            f"building takes about {needed >> 20} MiB of memory, {free >> 20} are free; "
            "build fewer at a time with --jobs or --component"
        )


def tested_on(backend: str) -> dict[str, str]:
    """What a report on engines says first: versions, GPU and driver; empty where the backend builds none."""
    if backend not in _BUILDING:
        return {}
    return {"edgediffusion": __version__, "python": platform.python_version()} | dataclasses.asdict(here(load(backend)))


def engines(arguments: Sequence[str]) -> int:
    """List, check, remove or move the engines that were built."""
    parser = Parser("engines", engines.__doc__ or "")
    add = parser.add_argument
    add("action", choices=("list", "verify", "prune", "export", "import"), help="what to do with them")
    add("file", type=Path, nargs="?", metavar="FILE", help="the tar file to export to or import from")
    add("--bundle", type=Path, metavar="DIR", help=f"those in DIR/{BUNDLE_STORE}; default: the user's cache")
    add("--all", action="store_true", help="prune: those that fit this machine as well")
    add("--json", action="store_true", help="list: as JSON")

    options = parser.parse_args(arguments)
    store = Store.of_user() if options.bundle is None else Store(options.bundle / BUNDLE_STORE)
    if (options.file is None) != (options.action not in ("export", "import")):
        raise UsageError(f"engines {options.action}: a FILE is {'wanted' if options.file is None else 'not wanted'}")
    return _ACTIONS[options.action](store, options)


def _show(store: Store, options: argparse.Namespace) -> int:
    entries, machines = list(store.entries()), _Machines()
    if options.json:
        rows = [
            {"file": str(entry.plan), "recipe": entry.recipe.to_record(), "plan": dataclasses.asdict(entry.built)}
            for entry in entries
        ]
        print_line(json.dumps(rows, indent=2))
    else:
        show_engines([(entry, machines.misfit(entry) or machines.unknown(entry) or "fits") for entry in entries])
    return 0


def _verify(store: Store, options: argparse.Namespace) -> int:
    bad, machines = 0, _Machines()
    for entry in store.entries():
        trouble = _trouble(entry) or machines.misfit(entry)
        bad += bool(trouble)
        unknown = machines.unknown(entry)
        sound = f"sound; whether it fits here is not known: {unknown}" if unknown else "sound, and for this machine"
        print_line(f"{entry.plan.name}: {trouble or sound}")
    return 1 if bad else 0


def _prune(store: Store, options: argparse.Namespace) -> int:
    machines, freed = _Machines(), 0
    for entry in store.entries():
        if options.all or _trouble(entry) or machines.misfit(entry):
            freed += entry.built.bytes
            print_line(f"removed {entry.plan.name}")
            entry.remove()
    for left in store.leftovers():
        print_line(f"removed {left.name}")
        left.unlink()
    print_line(f"{freed >> 20} MiB freed")
    return 0


def _export(store: Store, options: argparse.Namespace) -> int:
    print_line(f"{len(export_engines(store.entries(), options.file))} engines in {options.file}")
    return 0


def _import(store: Store, options: argparse.Namespace) -> int:
    for entry in import_engines(options.file, store):
        print_line(str(entry.plan))
    return 0


_ACTIONS = {"list": _show, "verify": _verify, "prune": _prune, "export": _export, "import": _import}


def _trouble(entry: Entry) -> str:
    try:
        entry.read()
    except DamagedEngine as error:
        return str(error)
    return ""


class _Machines:
    """This machine, as each backend sees it."""

    def __init__(self) -> None:
        self._targets: dict[str, Target | BackendUnavailable] = {}

    def misfit(self, entry: Entry) -> str:
        """Why the engine cannot be loaded here; empty where it can, or where that is not known."""
        target = self._target(entry)
        if isinstance(target, BackendUnavailable):
            return ""
        return "; ".join(entry.recipe.differences(entry.recipe.source, target))

    def unknown(self, entry: Entry) -> str:
        """Why it is not known whether the engine fits; empty where it is."""
        target = self._target(entry)
        return str(target) if isinstance(target, BackendUnavailable) else ""

    def _target(self, entry: Entry) -> Target | BackendUnavailable:
        backend = entry.recipe.target.backend
        if backend not in self._targets:
            try:
                self._targets[backend] = here(load(backend))
            except BackendUnavailable as error:
                self._targets[backend] = error
        return self._targets[backend]


def _shapes(text: str) -> tuple[tuple[int, int], ...]:
    matches = [re.fullmatch(r"(\d+)x(\d+)", part) for part in text.split(",")]
    if not all(matches):
        raise argparse.ArgumentTypeError(f"{text!r}, wanted WIDTHxHEIGHT between commas, such as 512x512,768x512")
    return tuple((int(match[1]), int(match[2])) for match in matches if match is not None)


def _batch(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match is not None else (0, 0)
    if not 1 <= least <= most:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted a number of pictures, or two such as 1-4")
    return least, most


def _between_commas(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _mebibytes(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}, wanted a number of MiB")
    return int(text) << 20
