"""The backends. To add one: a module with `open_engine` and its arguments as below, and a line here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .base import Building, Engine
from .errors import BackendUnavailable, UnknownName
from .packed import File
from .spec import GraphSpec


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A way to execute graphs.

    `extras` maps each device to the pip extra that brings it; `distributions` are the pip packages that provide
    the backend, of which only one may be installed at a time. Where a backend `builds`, its engines lie in the store.
    """

    module: str
    extras: Mapping[str, str]
    distributions: tuple[str, ...]
    builds: bool = False


BUILDING = Building()
BACKENDS: dict[str, Backend] = {
    "ort": Backend(
        module="edgediffusion.engines.ort",
        extras={"cpu": "cpu", "cuda": "cuda", "tensorrt": "cuda", "nv_tensorrt_rtx": "cuda"},
        distributions=("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
    ),
    "tensorrt": Backend(
        module="edgediffusion.engines.tensorrt", extras={"cuda": "tensorrt"}, distributions=("tensorrt",), builds=True
    ),
    "tensorrt_rtx": Backend(
        module="edgediffusion.engines.tensorrt_rtx",
        extras={"cuda": "tensorrt-rtx"},
        distributions=("tensorrt-rtx",),
        builds=True,
    ),
}


def open_engine(
    model: File,
    spec: GraphSpec,
    *,
    backend: str = "ort",
    device: str = "auto",
    dialects: Mapping[str, File] = MappingProxyType({}),
    building: Building = BUILDING,
) -> Engine:
    """Open the graph in the file `model`; `device` "auto" takes the best one that works here: a GPU before the CPU.

    Where no engines are built, the file may lie in a pack.

    `dialects` are files that hold the same graph as one device computes it fastest, by the device's name; that of the
    CPU holds weights in 8 bits in float32.
    `building` says what to do where there is no engine yet, see `store`.

    Raises:
        UnknownName: there is no such backend, or it has no such device.
        BackendUnavailable: the backend or device is not installed or does not work here.
        BundleError: `model` or its weights are missing or damaged, or its inputs and outputs are not those of `spec`.

    Warns:
        OnCpu: see `ort_cuda`.
    """
    if backend not in BACKENDS:
        raise UnknownName("backend", backend, BACKENDS)
    extras = BACKENDS[backend].extras
    if device not in ("auto", *extras):
        raise UnknownName("device", device, ("auto", *extras))
    try:
        module = importlib.import_module(BACKENDS[backend].module)
    except ImportError as error:
        extra = extras.get(device, next(iter(extras.values())))
        raise BackendUnavailable(
            f"backend {backend!r} cannot be imported ({error})", f"pip install 'edgediffusion[{extra}]'"
        ) from error
    engine: Engine = module.open_engine(model, spec, device=device, dialects=dialects, building=building)
    return engine
