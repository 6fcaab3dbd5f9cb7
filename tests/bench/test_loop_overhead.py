"""The time around the engines. What the times are is a benchmark's business, not a test's."""

from __future__ import annotations

import pytest

from edgediffusion.bench import loop_overhead as module
from edgediffusion.bench.cli import bench
from edgediffusion.bench.figures import Figure
from edgediffusion.bench.loop_overhead import DIFFUSION, measure, times_outside
from edgediffusion.bench.scheduler_step import STEPS


def test_every_sampler_has_a_time_for_each_call() -> None:
    for sampler in DIFFUSION:
        times = times_outside(sampler.name)
        assert len(times) >= STEPS
        assert min(times) > 0


def test_the_figures() -> None:
    said: list[str] = []
    figures = measure(DIFFUSION[:1], 2, said.append)
    assert [(figure.name, len(figure.values)) for figure in figures] == [("ddpm, p50", 2), ("ddpm, p90", 2)]
    assert said == ["warming up", "run 1 of 2", "run 2 of 2"]


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "measure", lambda *_: [Figure(name="ddim, p50", unit="us", values=(80.0,))])
    assert bench(["loop-overhead", "--cores", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["ddim,", "p50", "80.0", "80.0", "80.0", "us", "1"]
