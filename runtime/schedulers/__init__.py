"""The samplers. To add one: a module here, and its names below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .base import Scheduler
from .ddim import ddim
from .dpmpp_2m import dpmpp_2m
from .euler import euler

# Short names and diffusers' class names -> maker(scheduler_config, num_inference_steps).
SCHEDULERS: dict[str, Callable[[Mapping[str, Any], int], Scheduler]] = {
    "ddim": ddim,
    "DDIMScheduler": ddim,
    "dpmpp_2m": dpmpp_2m,
    "DPMSolverMultistepScheduler": dpmpp_2m,
    "euler": euler,
    "EulerDiscreteScheduler": euler,
}

__all__ = ["SCHEDULERS", "Scheduler"]
