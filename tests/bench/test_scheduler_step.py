"""The time of a step. What the times are is a benchmark's business, not a test's."""

from __future__ import annotations

import importlib.util

import pytest

from edgediffusion.bench import scheduler_step as module
from edgediffusion.bench.cli import bench
from edgediffusion.bench.figures import Figure
from edgediffusion.bench.scheduler_step import DETERMINISTIC, measure, percentiles, times_of_calls


class Recorder:
    def __init__(self) -> None:
        self.calls = 3
        self.asked: list[int] = []

    def __call__(self, i: int) -> None:
        self.asked.append(i)


def test_a_run_has_a_time_for_each_call_in_order() -> None:
    stepper = Recorder()
    times = times_of_calls(stepper)
    assert stepper.asked == [0, 1, 2]
    assert len(times) == 3
    assert min(times) > 0


def test_figures_of_ours_and_of_the_same_class_of_diffusers() -> None:
    euler, heun = (sampler for sampler in DETERMINISTIC if sampler.name in ("euler", "heun"))
    figures = measure([euler, heun], 2, lambda line: None)
    names = ("euler", "  diffusers' EulerDiscreteScheduler", "heun", "  diffusers' HeunDiscreteScheduler")
    assert [figure.name for figure in figures] == [f"{name}, {part}" for name in names for part in ("p50", "p90")]
    assert all(len(figure.values) == 2 and figure.unit == "us" for figure in figures)


def test_percentiles() -> None:
    p50, p90 = percentiles("x", [[float(k) for k in range(11)], [2.0, 2.0, 2.0]])
    assert p50 == Figure(name="x, p50", unit="us", values=(5.0, 2.0))
    assert p90 == Figure(name="x, p90", unit="us", values=(9.0, 2.0))


def test_without_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    figures = measure(DETERMINISTIC[:1], 1, said.append)
    assert [figure.name for figure in figures] == ["ddim, p50", "ddim, p90"]
    assert said[0] == "torch and diffusers are not both installed: compared with nothing"


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[int] = []

    def measured(samplers: object, runs: int, report: object) -> list[Figure]:
        asked.append(runs)
        return [Figure(name="ddim, p50", unit="us", values=(21.04,))]

    monkeypatch.setattr(module, "measure", measured)
    assert bench(["scheduler-step", "--cores", "1"]) == 0
    assert asked == [20]
    out = capsys.readouterr().out
    assert out.startswith("benchmark scheduler-step, latents (1, 4, 64, 64) float32, num_inference_steps 25\n")
    assert out.splitlines()[-1].split() == ["ddim,", "p50", "21.0", "21.0", "21.0", "us", "1"]
