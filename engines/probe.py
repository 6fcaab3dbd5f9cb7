"""Which backends and devices work on this machine: each is asked to run a graph of one convolution."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import BackendUnavailable, EdgeDiffusionError, EngineError
from .registry import BACKENDS, open_engine
from .spec import GraphSpec, TensorSpec

# y = conv(x, 2) + 1, made by tests/engines/data/make.py
MODEL = Path(__file__).with_name("probe.onnx")
SPEC = GraphSpec(
    "probe",
    (TensorSpec("x", "float32", (1, 1, "height", "width")),),
    (TensorSpec("y", "float32", (1, 1, "height", "width")),),
)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What was found. `versions` are the backend's pip packages here.

    `reason` says what is wrong and `remedy` is the one command that mends it; both are empty when nothing is.
    """

    backend: str
    device: str
    versions: dict[str, str]
    works: bool
    reason: str = ""
    remedy: str = ""


def probe_all() -> tuple[Probe, ...]:
    """One `Probe` for each device of each backend."""
    return tuple(probe(name, device) for name, backend in BACKENDS.items() for device in backend.extras)


def probe(backend: str, device: str) -> Probe:
    """Run the tiny graph on this backend and device."""
    versions = _versions(BACKENDS[backend].distributions)
    extra = f"'edgediffusion[{BACKENDS[backend].extras[device]}]'"
    works, reason, remedy = True, "", ""
    try:
        _run(backend, device)
    except BackendUnavailable as error:
        works, reason, remedy = False, error.reason, error.remedy
    except EdgeDiffusionError as error:
        works, reason, remedy = False, str(error), f"pip install --force-reinstall {extra}"
    if len(versions) > 1:
        reason = f"{' and '.join(versions)} are both installed and overwrite one another's files"
        remedy = f"pip uninstall -y {' '.join(versions)} && pip install {extra}"
    return Probe(backend=backend, device=device, versions=versions, works=works, reason=reason, remedy=remedy)


def _run(backend: str, device: str) -> None:
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    with open_engine(MODEL, SPEC, backend=backend, device=device) as engine:
        y = engine({"x": x})["y"]
    if not np.array_equal(y, 2 * x + 1):
        raise EngineError("a convolution gives a wrong result")


def _versions(distributions: Iterable[str]) -> dict[str, str]:
    versions = {}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
