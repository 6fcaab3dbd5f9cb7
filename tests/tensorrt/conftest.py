"""The command line over TensorRT: with stand-ins for it and for the GPU, and with the real ones under `-m gpu`."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediffusion.engines.cuda import find_gpu
from edgediffusion.engines.errors import BackendUnavailable
from edgediffusion.engines.spec import Array
from edgediffusion.engines.store import Entry, Store
from edgediffusion.engines.tensorrt_versions import VERSIONS, Version, load
from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.pipeline import BUILTIN

ROOT = Path(__file__).parents[2]
REAL = (sys.executable, "-c", "from edgediffusion.runtime.cli import script; script()")
FAKE = (sys.executable, "-m", "tests.engines.stand_in")
STEPS = 4
LIMIT = 900  # seconds of one command: TensorRT 8.6 builds for minutes, longer where others build, too
SEVERAL = ("--shapes", "128x128,192x128", "--batch", "1-2")
DRAWING = ("--component", "text_encoder", "--component", "unet", "--component", "vae_decoder")


@dataclass(frozen=True)
class Machine:
    """Runs the command in processes of its own, which keep their engines below `cache`."""

    command: tuple[str, ...]
    backend: str
    version: Version
    cache: Path

    @property
    def store(self) -> Store:
        return Store(self.cache / "edgediffusion" / "engines")

    def engine(self, component: str) -> Entry:
        """The only one of this component."""
        (entry,) = (entry for entry in self.store.entries() if entry.recipe.source.component == component)
        return entry

    def start(self, *arguments: object, seconds: float = 0) -> subprocess.Popen[str]:
        """`seconds` are those of a stand-in's build."""
        return subprocess.Popen(
            [*self.command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=os.environ | {"XDG_CACHE_HOME": str(self.cache), "STAND_IN_SECONDS": str(seconds)},
        )

    def run(self, *arguments: object, status: int = 0, says: str = "") -> str:
        """What it prints, which `says` is a pattern of."""
        return ended(self.start(*arguments), status, says)

    def build(self, *arguments: object, bundle: Path = BUILTIN) -> list[object]:
        """The arguments of a build that looks for fast kernels no longer than it must."""
        quick = ["--optimization-level", 0] if "optimization_level" in self.version.options else []
        return ["build", bundle, "--backend", self.backend, *quick, *arguments]

    def generate(self, picture: Path, *arguments: object, bundle: Path = BUILTIN) -> list[object]:
        settings = ["--seed", 0, "--num-inference-steps", STEPS, "--bundle", bundle, "--backend", self.backend]
        return ["generate", "a red apple", *settings, "-o", picture, *arguments]

    def draw(self, *arguments: object, bundle: Path = BUILTIN) -> Array:
        """The picture that engines which are there give."""
        picture = self.cache / "picture.png"
        self.run(*self.generate(picture, "--no-build", "--force", *arguments, bundle=bundle))
        return read(picture)

    def refuses(self, says: str, *, bundle: Path = BUILTIN) -> None:
        """Its engines are not loaded, and no picture is drawn."""
        picture = self.cache / "none.png"
        self.run(*self.generate(picture, "--no-build", bundle=bundle), status=2, says=says)
        assert not picture.exists()


def output(process: subprocess.Popen[str]) -> str:
    """All that it prints; one that does not end is killed."""
    try:
        return process.communicate(timeout=LIMIT)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def ended(process: subprocess.Popen[str], status: int = 0, says: str = "") -> str:
    """What a process printed, once it has ended; it is one line where it failed."""
    return checked(output(process), process.returncode, status, says)


def checked(text: str, returncode: int, status: int = 0, says: str = "") -> str:
    """`text`, which a process printed that ended with `returncode`."""
    assert returncode == status, text
    assert re.search(says, text), text
    assert "Traceback" not in text
    assert status != 2 or len(text.splitlines()) == 1, text
    return text


def read(picture: Path) -> Array:
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"), np.float64)


def psnr(one: Array, other: Array) -> float:
    """In dB; infinite where they are the same."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(255**2 / np.mean((one - other) ** 2)))


@functools.cache
def reference(size: str = "128x128", count: int = 1, bundle: Path = BUILTIN) -> list[Array]:
    """What ONNX Runtime draws on the CPU."""
    width, height = map(int, size.split("x"))
    with Pipeline.load(bundle, device="cpu") as pipeline:
        settings: dict[str, Any] = {"seed": 0, "num_inference_steps": STEPS, "num_images": count}
        images = pipeline("a red apple", width=width, height=height, **settings)
    return [np.asarray(image.image, np.float64) for image in images]


@pytest.fixture(scope="session", params=["fake", pytest.param("gpu", marks=pytest.mark.gpu)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def installed(kind: str) -> Callable[[Path], Machine]:
    """By a cache, the machine of the TensorRT that is here."""
    if kind == "fake":
        return lambda cache: Machine(FAKE, "tensorrt", VERSIONS["tensorrt", 10], cache)
    reasons = []
    for backend in sorted({backend for backend, _ in VERSIONS}):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what a library says of itself when it is imported
                find_gpu()
                version = load(backend).version
        except BackendUnavailable as error:
            reasons.append(str(error))
        else:
            return lambda cache: Machine(REAL, backend, version, cache)
    pytest.skip("; ".join(reasons))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of a run have."""
    root = tmp_path_factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


@pytest.fixture(scope="session")
def built(kind: str, installed: Callable[[Path], Machine], shared: Path) -> Machine:
    """With engines of the built-in model for two sizes, and for one picture or two at once."""
    from filelock import FileLock

    machine = installed(shared / f"tensorrt-{kind}")
    with FileLock(shared / f"tensorrt-{kind}.lock"):
        if not machine.cache.exists():
            machine.run(*machine.build(*SEVERAL, "--jobs", 3, *DRAWING))
    return machine


@pytest.fixture
def machine(installed: Callable[[Path], Machine], tmp_path: Path) -> Machine:
    """One without engines."""
    (tmp_path / "cache").mkdir()
    return installed(tmp_path / "cache")


@pytest.fixture
def stocked(machine: Machine, built: Machine) -> Machine:
    """One with the engines of `built`, to do harm to."""
    shutil.copytree(built.cache, machine.cache, dirs_exist_ok=True)
    return machine


@pytest.fixture(autouse=True)
def turn(request: pytest.FixtureRequest, kind: str, shared: Path) -> Iterator[None]:
    """A test marked `hungry` has the GPU for itself."""
    if kind == "fake":
        yield
        return
    import fcntl

    with (shared / "gpu.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if request.node.get_closest_marker("hungry") else fcntl.LOCK_SH)
        yield
