from __future__ import annotations

import importlib.metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgediffusion.engines import probe as probe_module
from edgediffusion.engines.errors import BackendUnavailable, BundleError
from edgediffusion.engines.fake import FakeEngine
from edgediffusion.engines.probe import SPEC, Probe, probe, probe_all
from edgediffusion.engines.registry import BACKENDS


def test_every_device_of_every_backend_is_probed() -> None:
    probes = probe_all()
    assert [(p.backend, p.device) for p in probes] == [(n, d) for n, b in BACKENDS.items() for d in b.extras]
    assert all((p.remedy == "") == (p.reason == "") == p.works for p in probes)


def test_the_cpu_works_here() -> None:
    found = probe("ort", "cpu")
    assert found == Probe(backend="ort", device="cpu", versions=found.versions, works=True)
    assert onnxruntime.__version__ in found.versions.values()


@pytest.mark.parametrize(
    ("error", "reason", "remedy"),
    [
        (BackendUnavailable("not here", "pip install it"), "not here", "pip install it"),
        (BundleError("cannot be read"), "cannot be read", "pip install --force-reinstall 'edgediffusion[cpu]'"),
    ],
)
def test_a_backend_that_cannot_be_opened(
    error: Exception, reason: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_engine(model: Path, spec: object, *, backend: str, device: str) -> None:
        raise error

    monkeypatch.setattr(probe_module, "open_engine", open_engine)
    found = probe("ort", "cpu")
    assert (found.works, found.reason, found.remedy) == (False, reason, remedy)


def test_a_backend_that_computes_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeEngine(SPEC, lambda feeds: {"y": np.zeros_like(feeds["x"])})
    monkeypatch.setattr(probe_module, "open_engine", lambda *args, **kwargs: fake)
    found = probe("ort", "cpu")
    assert (found.works, found.reason) == (False, "a convolution gives a wrong result")


def test_two_packages_that_own_the_same_files(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime": "1.23.0", "onnxruntime-gpu": "1.22.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = probe("ort", "cpu")
    assert found.works
    assert found.versions == installed
    assert found.reason == "onnxruntime and onnxruntime-gpu are both installed and overwrite one another's files"
    assert found.remedy == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'edgediffusion[cpu]'"
