"""TensorRT's engines in the store: which graph, which machine, where they lie, and how one is made."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from edgediffusion import __version__

from .base import Report
from .cuda import find_gpu
from .errors import UsageError
from .onnx_file import digests, read_onnx
from .profile import Profile
from .recipe import STRIPPED, Graph, Recipe, Target
from .spec import GraphSpec
from .store import Entry, Store, find_engines
from .tensorrt_build import BuildOptions, build_plan
from .tensorrt_versions import TensorRT

BUNDLE_STORE = "engines"  # a bundle's own store, in its folder


class EngineBuilding(UserWarning):
    """An engine is being built, which takes minutes for a large network."""


@dataclass(frozen=True)
class Job:
    """A graph to have engines of: `path` is its file, `precision` what it computes in."""

    path: Path
    spec: GraphSpec
    source: Graph
    precision: str

    @classmethod
    def of(cls, model: Path, spec: GraphSpec, precision: str, sha256: Mapping[Path, str] = MappingProxyType({})) -> Job:
        """Digests the file `model` and its weights, but for those in `sha256`."""
        graph, *weights = digests(model, sha256)
        source = Graph(
            component=model.parent.name,
            variant=model.stem.removeprefix("model").removeprefix("."),
            graph=graph,
            weights=" ".join(weights),
        )
        return cls(model, spec, source, precision)

    @property
    def bundle(self) -> Path:
        """The folder that the component's folder is in."""
        return self.path.parent.parent

    @property
    def stores(self) -> list[Store]:
        """Where engines of it may lie: in the bundle, in the user's cache."""
        return [Store(self.bundle / BUNDLE_STORE), Store.of_user()]

    @property
    def weights_bytes(self) -> int:
        """As the graph computes with them."""
        return read_onnx(self.path).weights * (2 if self.precision in ("float16", "bfloat16") else 4)

    def command(self, backend: str, more: str = "") -> str:
        """What a user types to have an engine of it."""
        return f"edgediffusion build {self.bundle} --backend {backend}{more}"


def options_for(tensorrt: TensorRT, job: Job) -> BuildOptions:
    """Of an engine that is built because it is lacking: its weights may stream where they take half of the GPU."""
    large = 2 * job.weights_bytes > find_gpu().memory
    return BuildOptions(weight_streaming=large and "weight_streaming" in tensorrt.version.options)


def here(tensorrt: TensorRT) -> Target:
    """This machine.

    Raises:
        BackendUnavailable: it has no GPU that works.
    """
    gpu = find_gpu()
    return Target(
        backend=tensorrt.backend,
        version=tensorrt.number,
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
    )


def find(tensorrt: TensorRT, job: Job) -> list[Entry]:
    """The engines of this graph that this machine may load.

    Raises:
        NoEngine: there is none; it says what differs in the nearest one, and the command.
    """
    return find_engines(job.stores, job.source, here(tensorrt), job.command(tensorrt.backend))


def recipe_of(tensorrt: TensorRT, job: Job, profiles: Sequence[Profile], options: BuildOptions) -> Recipe:
    """What an engine with these options would be, here or on the machines that they name.

    Raises:
        UsageError: see `BuildOptions.check`.
        BackendUnavailable: the build needs a GPU.
    """
    options.check(tensorrt)
    source = replace(job.source, weights=STRIPPED) if options.weight_stripped else job.source
    return Recipe(
        source=source,
        target=_target(tensorrt, options),
        precision=job.precision,
        profiles=tuple(profiles),
        flags=options.flags,
    )


def _target(tensorrt: TensorRT, options: BuildOptions) -> Target:
    """An older driver than the one that a plan was built with is not known to run it; a newer one does."""
    if not tensorrt.version.needs_gpu:
        capability = ", ".join(options.compute_capability) or tensorrt.version.compute_capabilities
        return Target(
            backend=tensorrt.backend, version=tensorrt.number, gpu="", compute_capability=capability, driver=""
        )
    target = here(tensorrt)
    target = replace(target, driver=f"{target.driver}+")
    if options.version_compatible:
        target = replace(target, version=f"{target.version}+")
    if options.hardware_compatible:
        target = replace(target, gpu="", compute_capability="8.0+")
    return target


def ensure(
    tensorrt: TensorRT,
    job: Job,
    profiles: Sequence[Profile],
    options: BuildOptions,
    store: Store,
    report: Report = lambda fraction: None,
    stop: threading.Event | None = None,
) -> Entry:
    """The engine of these profiles and options: from `store`, or built now.

    Raises:
        UsageError: too little disk, or see `recipe_of`.
        EngineError, BundleError: see `build_plan`.
    """

    def build() -> bytes:
        _check_disk(job, store.folder)
        return build_plan(tensorrt, job.path, job.spec, profiles, job.precision, options, report, stop)

    def wait(name: str) -> None:
        warnings.warn(f"{name} is being built by another process; waiting for it", EngineBuilding, stacklevel=2)

    recipe = recipe_of(tensorrt, job, profiles, options)
    return store.get_or_build(recipe, build, by=f"edgediffusion {__version__}", on_wait=wait, stop=stop)


def _check_disk(job: Job, folder: Path) -> None:
    needed, free = disk_needed(job), shutil.disk_usage(folder).free
    if needed > free:
        raise UsageError(f"{folder}: {free >> 20} MiB free, an engine of {job.spec.name} takes about {needed >> 20}")


def disk_needed(job: Job) -> int:
    """Bytes of an engine, about: for the UNet of Stable Diffusion 1.5 1.006 times its weights, for the built-in 1.3."""
    return job.weights_bytes + (16 << 20)


def memory_needed(job: Job) -> int:
    """Bytes of the host's memory that a build takes, about.

    TensorRT-RTX took 10685 MiB for the UNet of Stable Diffusion 1.5, which has 3278 MiB in float32, or 9340 where its
    weights are stored in float16; 475 for the built-in one, of 34 MiB.
    """
    return 13 * job.weights_bytes // 4 + (512 << 20)
