"""The samplers. To add one: a module here, and its names below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .base import Scheduler
from .config import pick
from .ddim import ddim
from .dpmpp_2m import dpmpp_2m
from .euler import euler

# Name -> maker(scheduler_config, num_inference_steps). The short name of a sampler stands before diffusers' class name.
SCHEDULERS: dict[str, Callable[[Mapping[str, Any], int], Scheduler]] = {
    "ddim": ddim,
    "DDIMScheduler": ddim,
    "dpmpp_2m": dpmpp_2m,
    "DPMSolverMultistepScheduler": dpmpp_2m,
    "euler": euler,
    "EulerDiscreteScheduler": euler,
}

__all__ = ["SCHEDULERS", "Scheduler", "short_name"]


def short_name(name: str) -> str:
    """The short name of a sampler, from either of its names.

    Raises:
        UnknownName: it is in no table.
    """
    maker = pick("scheduler", name, SCHEDULERS)
    return next(key for key, value in SCHEDULERS.items() if value is maker)
