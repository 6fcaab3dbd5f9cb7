"""Results that nobody measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgediffusion.bench.schema import OURS, Measurement, Results, Span

MACHINE: dict[str, Any] = {
    "cpu": "A processor",
    "cores_used": 2,
    "threads": 4,
    "cpu_mhz": [2000.0, 2500.0],
    "gpu": {"name": "A GPU", "driver": "1.2", "memory": 1, "clocks": {"sm": 1980, "memory": 2619}},
    "load_average": 0.5,
    "load_average_after": 1.5,
    "git_revision": "abc",
    "versions": {"python": "3.11"},
    "contenders": {OURS: {"onnxruntime": "1.32"}},
}
SETTINGS: dict[str, Any] = {"model": "tiny", "bundle_digest": "123", "dtype": "float32", "num_inference_steps": 20}


def measured(
    case: str, contender: str, rounds: Sequence[tuple[float, ...]], unit: str = "s", **parameters: Any
) -> Measurement:
    """A measurement, of batch 2 unless told."""
    parameters = parameters or {"batch": 2}
    return Measurement(case=case, contender=contender, unit=unit, rounds=tuple(rounds), parameters=parameters)


def results(scale: float = 1.0) -> Results:
    """Something of every kind; our times are `scale` times as long."""
    found = [
        measured("unet", OURS, [(2.0 * scale,)] * 3),
        measured("unet", "diffusers", [(2.0,), (4.0,), (6.0,)]),
        measured("disk", OURS, [(3e7,)], "bytes"),
    ]
    for name, factor in ((OURS, scale), ("diffusers", 2.0)):
        for steps, decibels in ((5, 20.0), (10, 30.0), (50, 60.0)):
            found.append(measured("growth-steps", name, [(0.1 * steps * factor,)], steps=steps))
            found.append(measured("quality", name, [(decibels,)], "dB", steps=steps, against=50))
        for batch in (1, 2, 4):
            found.append(measured("throughput", name, [(batch * factor,)], steps=20, batch=batch))
            found.append(measured("growth-batch", name, [(batch * factor,)], batch=batch, height=8, width=8))
            found.append(measured("growth-pixels", name, [(batch**2 * factor,)], batch=2, height=batch, width=batch))
    spans = (Span(name="text_encoder", start=0.0, end=0.5), Span(name="unet", start=0.0, end=1.0))
    return Results(
        settings=SETTINGS, machine=MACHINE, measurements=tuple(found), timeline=spans, skipped=("openvino: skipped",)
    )
