"""What the real TensorRT-RTX builds of tiny bundles: it needs no GPU for that, but one to load a plan."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgediffusion.engines.store import Store
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.manifest import Manifest

from ..conftest import TINY

pytest.importorskip("tensorrt_rtx")
RTX = ["--backend", "tensorrt_rtx"]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(Store, "of_user", lambda: Store(tmp_path / "cache"))
    return Store.of_user()


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "sd" else pytest.mark.slow) for name in TINY])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--compute-capability", "8.9"],
        pytest.param(["--shapes", "64x64,96x64", "--batch", "1-2", "--dynamic"], marks=pytest.mark.slow),
        pytest.param(["--shapes", "64x64,96x64"], marks=pytest.mark.slow),
    ],
    ids=["static", "dynamic", "profiles"],
)
def test_every_family_is_built(name: str, arguments: list[str], bundles: Callable[[str], Path], store: Store) -> None:
    bundle = bundles(name)
    assert main(["build", str(bundle), *RTX, *arguments]) == 0
    built = {entry.recipe.source.component: entry for entry in store.entries()}
    assert built.keys() == Manifest.read(bundle).graphs.keys() - {"image_encoder"}
    for entry in built.values():
        assert entry.recipe.target.compute_capability == ("8.9" if "8.9" in arguments else "8.0+")
        assert entry.built.bytes > entry.read().count(b"\0")


def test_dynamic_engines_and_a_level_that_it_lacks(
    bundle: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    some = ["--component", "text_encoder", "--component", "vae_decoder"]
    assert main(["build", str(bundle), *RTX, *some, "--shapes", "64x64,96x64", "--dynamic", "--jobs", "2"]) == 0
    assert [entry.recipe.source.component for entry in store.entries()] == ["text_encoder", "vae_decoder"]
    assert main(["build", str(bundle), *RTX, "--optimization-level", "3"]) == 2
    assert "TensorRT-RTX has no --optimization-level; leave it out" in capsys.readouterr().err


# Runs the command over the store argv[1].
COMMAND = """
import sys
from pathlib import Path
from edgediffusion.engines.store import Store
from edgediffusion.runtime.cli import main
Store.of_user = lambda: Store(Path(sys.argv[1]))
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for another process")
def test_ctrl_c_stops_a_build(bundle: Path, store: Store) -> None:
    command = [sys.executable, "-c", COMMAND, str(store.folder), "build", str(bundle), *RTX, "--component", "unet"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not any(store.folder.glob("*.lock")):
        time.sleep(0.01)
    time.sleep(1)  # the build of this UNet takes two
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert [path.suffix for path in store.folder.iterdir()] == [".lock"]
