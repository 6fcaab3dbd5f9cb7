"""What a sampler itself costs at each call of the UNet, beside diffusers' of the same class."""

from __future__ import annotations

import importlib.util
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from edgediffusion.runtime.arrays import F32
from edgediffusion.runtime.schedulers import SAMPLERS, Sampler, make_scheduler

from .benchmark import parser_with_runs, run, say
from .figures import Figure
from .parity.cases import SD15
from .processes import Report

STEPS = 25
SHAPE = (1, 4, 64, 64)
# Those that draw noise cost what its generator does.
DETERMINISTIC = tuple(sampler for sampler in SAMPLERS if sampler.diffusers is not None and not sampler.draws_noise)


def scheduler_step(arguments: Sequence[str]) -> int:
    """The benchmark `scheduler-step`."""
    parser = parser_with_runs("scheduler-step", "Time of a sampler's step, in turn with diffusers'.", runs=20)
    options = parser.parse_args(arguments)
    settings = {"benchmark": "scheduler-step", "latents": f"{SHAPE} float32", "num_inference_steps": STEPS}
    return run(settings, options, lambda _: measure(DETERMINISTIC, options.runs, say))


class Stepper(Protocol):
    """What the loop asks of a sampler, without the UNet."""

    calls: int

    def __call__(self, i: int) -> None:
        """Call `i`, upwards from 0: scale what the UNet sees, and step."""
        ...


class OurStepper:
    """A sampler of ours, by its short name."""

    def __init__(self, name: str) -> None:
        self._scheduler = make_scheduler(name, SD15, STEPS)
        self._latents, self._output = _arrays()
        self._history: tuple[F32, ...] = ()
        self.calls = len(self._scheduler.timesteps)

    def __call__(self, i: int) -> None:
        """See `Stepper`."""
        self._scheduler.scale_model_input(self._latents, i)
        self._latents, self._history = self._scheduler.step(self._output, i, self._latents, self._history, None)


class TheirStepper:
    """A sampler of diffusers, by its class, on the CPU."""

    def __init__(self, name: str) -> None:
        import torch

        from .parity.reference import their_scheduler

        self._scheduler = their_scheduler(name, SD15)
        self._scheduler.set_timesteps(STEPS)
        self._latents, self._output = map(torch.from_numpy, _arrays())
        self._scale: Any = getattr(self._scheduler, "scale_model_input", lambda latents, _: latents)
        self.calls = len(self._scheduler.timesteps)

    def __call__(self, i: int) -> None:
        """See `Stepper`."""
        t = self._scheduler.timesteps[i]
        self._scale(self._latents, t)
        self._latents = self._scheduler.step(self._output, t, self._latents, return_dict=False)[0]


def measure(samplers: Sequence[Sampler], runs: int, report: Report) -> list[Figure]:
    """Of each run, the median and the 90th percentile over its calls, in microseconds."""
    compared = all(importlib.util.find_spec(name) is not None for name in ("torch", "diffusers"))
    if not compared:
        report("torch and diffusers are not both installed: compared with nothing")
    times: dict[str, list[list[float]]] = {}
    for k in range(runs + 1):
        report(f"run {k} of {runs}" if k else "warming up")
        for sampler in samplers:
            for name, of_run in _run_of(sampler, compared).items():
                if k:
                    times.setdefault(name, []).append(of_run)
    return [figure for name, of_runs in times.items() for figure in percentiles(name, of_runs)]


def _run_of(sampler: Sampler, compared: bool) -> dict[str, list[float]]:
    steppers: dict[str, Stepper] = {sampler.name: OurStepper(sampler.name)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own
        if compared:
            steppers[f"  diffusers' {sampler.diffusers}"] = TheirStepper(str(sampler.diffusers))
        # Whole runs in turn, not calls: between calls one would measure what the other has left in the caches.
        return {name: times_of_calls(stepper) for name, stepper in steppers.items()}


def times_of_calls(stepper: Stepper) -> list[float]:
    """Microseconds of each call of one run."""
    times = []
    for i in range(stepper.calls):
        start = time.perf_counter_ns()
        stepper(i)
        times.append((time.perf_counter_ns() - start) / 1e3)
    return times


def percentiles(name: str, runs: Sequence[Sequence[float]]) -> Iterator[Figure]:
    """From the times of the calls of each run."""
    yield Figure(name=f"{name}, p50", unit="us", values=tuple(statistics.median(times) for times in runs))
    p90 = tuple(statistics.quantiles(times, n=10, method="inclusive")[-1] for times in runs)
    yield Figure(name=f"{name}, p90", unit="us", values=p90)


def _arrays() -> tuple[F32, F32]:
    """Latents, and what a UNet might say."""
    random = np.random.default_rng(0)
    return random.standard_normal(SHAPE, np.float32), random.standard_normal(SHAPE, np.float32)
