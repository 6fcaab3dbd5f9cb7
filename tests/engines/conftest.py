from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from edgediffusion.engines import cuda as cuda_module
from edgediffusion.engines import tensorrt as tensorrt_module
from edgediffusion.engines.profile import Profile
from edgediffusion.engines.recipe import Graph, Recipe, Target
from edgediffusion.engines.spec import Array
from edgediffusion.engines.store import Store

from .fake_tensorrt import FakeCuda, FakeTensorRT

SOURCE = Graph(component="unet", variant="", graph="a" * 64, weights="b" * 64)
HERE = Target(backend="tensorrt", version="10.13.2.6", gpu="NVIDIA H100", compute_capability="9.0", driver="580.95.05")
RECIPE = Recipe(
    source=SOURCE,
    target=HERE,
    precision="float16",
    profiles=(Profile.of({"batch": 2, "height": 64, "width": (64, 64, 96)}),),
    flags=("optimization_level=3",),
)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCuda:
    """A GPU that is none, and an empty store of the user's."""
    cuda = FakeCuda()
    monkeypatch.setattr(cuda_module, "_api", lambda: cuda)
    monkeypatch.setattr(cuda_module, "_driver", lambda: "580.95.05")
    monkeypatch.setattr(tensorrt_module, "_SCRATCH", tensorrt_module.Scratch())
    monkeypatch.setattr(Store, "of_user", lambda: Store(tmp_path / "cache"))
    return cuda


@pytest.fixture
def tensorrt(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeTensorRT]:
    """Makes a TensorRT of a version the one that is installed; it computes tiny.onnx and probe.onnx."""

    def tiny(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": feeds["x"] @ np.array([[1, 2, 3], [4, 5, 6]], np.float32) + feeds["offset"]}

    def install(version: str = "10.13.2.6", name: str = "tensorrt") -> FakeTensorRT:
        fake = FakeTensorRT(name, version, cuda, {"tiny": tiny, "probe": lambda feeds: {"y": 2 * feeds["x"] + 1}})
        monkeypatch.setitem(sys.modules, name, fake)
        return fake

    return install
