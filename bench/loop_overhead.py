"""What a step costs outside the engines: the loop, guidance and sampler around a UNet that is none."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np

from edgediffusion.engines.fake import FakeEngine
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec
from edgediffusion.runtime import NumpyNoise, denoise
from edgediffusion.runtime.denoiser import Denoiser
from edgediffusion.runtime.guidance import classifier_free
from edgediffusion.runtime.schedulers import SAMPLERS, Sampler, make_scheduler

from .benchmark import parser_with_runs, run, say
from .figures import Figure
from .parity.cases import SD15
from .processes import Report
from .scheduler_step import SHAPE, STEPS, percentiles

_LATENTS = ("batch", 4, "height", "width")
SPEC = GraphSpec(
    "unet",
    (TensorSpec("sample", "float32", _LATENTS), TensorSpec("timestep", "float32", (1,))),
    (TensorSpec("out_sample", "float32", _LATENTS),),
)
DIFFUSION = tuple(sampler for sampler in SAMPLERS if sampler.diffusers is not None and "flow" not in sampler.name)


class TimedEngine(FakeEngine):
    """Predicts the latents themselves, and remembers how long it was busy, in microseconds."""

    def __init__(self) -> None:
        super().__init__(SPEC, lambda feeds: {"out_sample": feeds["sample"]})
        self.busy = 0.0

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Engine`."""
        start = time.perf_counter_ns()
        outputs = super().__call__(feeds)
        self.busy += (time.perf_counter_ns() - start) / 1e3
        return outputs


def loop_overhead(arguments: Sequence[str]) -> int:
    """The benchmark `loop-overhead`."""
    parser = parser_with_runs("loop-overhead", "Time of a step outside the engines, with guidance.", runs=20)
    options = parser.parse_args(arguments)
    settings = {"benchmark": "loop-overhead", "latents": f"{SHAPE} float32", "num_inference_steps": STEPS}
    return run(settings, options, lambda _: measure(DIFFUSION, options.runs, say))


def measure(samplers: Sequence[Sampler], runs: int, report: Report) -> list[Figure]:
    """Of each run, the median and the 90th percentile over its calls, in microseconds."""
    times: dict[str, list[list[float]]] = {sampler.name: [] for sampler in samplers}
    for k in range(runs + 1):
        report(f"run {k} of {runs}" if k else "warming up")
        for sampler in samplers:
            of_run = times_outside(sampler.name)
            if k:
                times[sampler.name].append(of_run)
    return [figure for name, of_runs in times.items() for figure in percentiles(name, of_runs)]


def times_outside(name: str) -> list[float]:
    """Microseconds outside the engine of each call of one run."""
    engine = TimedEngine()
    latents = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    steps = denoise(Denoiser(engine, classifier_free(7.5)), make_scheduler(name, SD15, STEPS), latents, NumpyNoise(0))
    times = []
    start = time.perf_counter_ns()
    for _ in steps:
        times.append((time.perf_counter_ns() - start) / 1e3 - engine.busy)
        engine.busy = 0.0
        start = time.perf_counter_ns()
    return times
