"""When the GPU's memory is taken; these have the GPU for themselves."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediffusion.engines.cuda import DeviceMemory, free_memory
from edgediffusion.engines.errors import OutOfMemory
from edgediffusion.engines.spec import Array
from edgediffusion.runtime import Pipeline

from .conftest import Machine, output

ON_A_GPU = pytest.mark.parametrize("kind", ["gpu"], indirect=True, scope="session")
pytestmark = [pytest.mark.gpu, pytest.mark.hungry, ON_A_GPU]

MiB = 1 << 20


class Taken:
    """All of the GPU's memory but `left` bytes, until it is given back."""

    def __init__(self, left: int = 0) -> None:
        self.parts: list[DeviceMemory] = []
        size = 1 << 30
        while size >= 256:
            try:
                if left and free_memory() - left < size:
                    raise OutOfMemory
                self.parts.append(DeviceMemory(size))
            except OutOfMemory:
                size //= 2


def draw(pipeline: Pipeline, width: int) -> Array:
    settings: dict[str, Any] = {"seed": 0, "num_inference_steps": 4, "height": 128}
    return np.asarray(pipeline("a red apple", width=width, **settings)[0].image)


def test_running_goes_on_after_it_was_too_little(built: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(built.cache))
    with Pipeline.load(backend=built.backend, build=False) as pipeline:
        first = [draw(pipeline, 128) for _ in range(3)][-1]
        taken = Taken()
        with pytest.raises(OutOfMemory, match=r"(?i)memory"):
            draw(pipeline, 192)
        with contextlib.suppress(OutOfMemory):  # the engines were freed, and nobody promises room for them meanwhile
            np.testing.assert_array_equal(draw(pipeline, 128), first)
        del taken
        assert draw(pipeline, 192).std() > 0
        np.testing.assert_array_equal(draw(pipeline, 128), first)


@pytest.mark.parametrize("left", [0, 256 * MiB, 600 * MiB])
def test_processes_say_so_in_a_line(left: int, built: Machine, machine: Machine, tmp_path: Path) -> None:
    """With so little even a process that computes nothing may not start."""
    build = machine.build("--component", "text_encoder")
    commands = [(machine, build), (built, built.generate(tmp_path / "none.png", "--no-build"))]
    taken = Taken(left)
    processes = [where.start(*command) for where, command in commands]
    for process in processes:
        text = output(process)
        assert process.returncode in ((2,) if left == 0 else (0, 2)), text
        assert process.returncode == 0 or "memory" in text.lower(), text
        assert "Traceback" not in text
    del taken
    machine.run(*build)
    built.draw()
