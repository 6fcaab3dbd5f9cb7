"""Processes, seen from outside. Nothing here depends on how fast they are."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from edgediffusion.bench.processes import execute, in_turn, limited_to
from edgediffusion.engines.errors import EdgeDiffusionError, UsageError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_output_and_the_order_of_the_clocks(tmp_path: Path) -> None:
    execution = execute(python("import os, time; print(os.getcwd(), time.monotonic())"), tmp_path)
    folder, inside = execution.output.split()
    assert folder == str(tmp_path)
    assert execution.started < float(inside) < execution.ended
    assert execution.seconds == execution.ended - execution.started


def test_processor_time_and_memory_are_those_of_the_process(tmp_path: Path) -> None:
    """Measured by a fresh process: this one holds more than it would measure, as the tests have loaded torch."""
    busy = "import time; memory = b'1' * 200_000_000\nwhile time.process_time() < 0.3: pass"
    measure = (
        "import json, sys; from pathlib import Path; from edgediffusion.bench.processes import execute\n"
        f"e = execute([sys.executable, '-c', {busy!r}], Path()); print(json.dumps([e.cpu_seconds, e.peak_bytes]))"
    )
    cpu_seconds, peak_bytes = json.loads(execute(python(measure), tmp_path).output)
    assert cpu_seconds >= 0.3
    assert 200e6 < peak_bytes < 300e6


def test_nothing_is_looked_up_on_the_network(tmp_path: Path) -> None:
    assert execute(python("import os; print(os.environ['HF_HUB_OFFLINE'])"), tmp_path).output == "1\n"


def test_a_process_that_fails(tmp_path: Path) -> None:
    with pytest.raises(
        EdgeDiffusionError, match=r"-c raise .* ended with status 1: ValueError: not like this$"
    ) as caught:
        execute(python("raise ValueError('not like this')"), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_process_that_fails_in_silence(tmp_path: Path) -> None:
    with pytest.raises(EdgeDiffusionError, match=r"ended with status -9: it says nothing"):
        execute(python("import os; os.kill(os.getpid(), 9)"), tmp_path)


def test_in_turn_and_the_first_of_each_does_not_count(tmp_path: Path) -> None:
    commands = {name: python(f"open('log', 'a').write({name!r}); print({name!r})") for name in "AB"}
    lines: list[str] = []
    executions = in_turn(commands, 2, tmp_path, lines.append)
    assert (tmp_path / "log").read_text() == "ABABAB"
    assert {name: [e.output for e in done] for name, done in executions.items()} == {"A": ["A\n"] * 2, "B": ["B\n"] * 2}
    assert lines == ["A, B: warming up", "A, B: run 1 of 2", "A, B: run 2 of 2"]


def test_processes_are_limited_to_the_cores(tmp_path: Path) -> None:
    with limited_to(1):
        execution = execute(python("import os; print(len(os.sched_getaffinity(0)))"), tmp_path)
    assert execution.output == "1\n"


def test_more_cores_than_there_are() -> None:
    there = len(os.sched_getaffinity(0))
    with (
        pytest.raises(UsageError, match=rf"cores {there + 1}; this machine lets the command use {there}$"),
        limited_to(there + 1),
    ):
        pass


def test_another_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UsageError, match="and this is darwin; run it on Linux"), limited_to(1):
        pass
