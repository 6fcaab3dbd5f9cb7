"""Little memory, and the same process for a long time; with the built-in model and ONNX Runtime."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.batches import draw
from edgediffusion.runtime.memory import resident_memory

from .commands import COMMAND

pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits that other systems do not keep")
GIB = 1 << 30


def limited(kind: str, size: int) -> Callable[[], None]:
    import resource

    return lambda: resource.setrlimit(getattr(resource, kind), (size, size))


def edgediffusion(kind: str, size: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, preexec_fn=limited(kind, size), capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_three_quarters_of_a_gibibyte_are_enough(kind: str, tmp_path: Path) -> None:
    """Of addresses, which is `ulimit -v`, or for itself, `ulimit -d`."""
    done = edgediffusion(kind, GIB * 3 // 4, "generate", "a car", "--num-inference-steps", "1", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a-car.png\n", "")


@pytest.mark.parametrize("share", [0.1, pytest.param(0.2, marks=pytest.mark.slow)])
def test_too_little_is_said_in_a_line(share: float, tmp_path: Path) -> None:
    done = edgediffusion("RLIMIT_DATA", int(share * GIB), "generate", "a car", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("edgediffusion: error: ")  # ONNX Runtime has its own before that
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_is_too_large_for_the_limit_stops_no_other(tmp_path: Path) -> None:
    jobs = [{"prompt": "a car", "width": size, "height": size, "num_inference_steps": 1} for size in (64, 2048, 128)]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    arguments = ["run", "jobs.jsonl", "--max-memory", "500", "--retries", "0"]
    done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stdout == "jobs-1.png\njobs-3.png\n"
    (failed,) = (record for record in journal(tmp_path) if record["state"] == "failed")
    assert (failed["line"], "memory" in failed["reason"]) == (2, True), failed


def journal(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def growth(pictures: int, every: int, folder: Path) -> list[tuple[int, int]]:
    """This process's memory, and how many objects Python follows, at each of `every` pictures of one step."""
    seen = []
    with Pipeline.load() as pipeline:
        for k in range(pictures):
            for picture in draw(pipeline.steps("a red apple", num_inference_steps=1, seed=k, width=64, height=64)):
                picture.save(folder / "picture.png")
            if k % every == every - 1:
                gc.collect()
                seen.append((resident_memory(), len(gc.get_objects())))
    return seen


def test_memory_is_flat(tmp_path: Path) -> None:
    """A single object that each picture leaves behind would be seen, or 40 kB outside of Python."""
    (_, before), (memory, objects), (later, end) = growth(45, 15, tmp_path)[-3:]
    assert max(objects, end) - before < 15
    assert later - memory < 15 * 40_000


@pytest.mark.slow
def test_memory_is_flat_for_ten_thousand_pictures(tmp_path: Path) -> None:
    seen = growth(10_000, 100, tmp_path)
    assert max(objects for _, objects in seen) - seen[0][1] < 100, seen
    assert max(memory for memory, _ in seen[10:]) - seen[10][0] < 4 << 20, seen
