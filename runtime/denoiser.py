"""The UNet and all that conditions it, as the one function that the loop calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from edgediffusion.engines.base import Engine
from edgediffusion.engines.spec import Array

from .arrays import F32
from .guidance import Guidance
from .loop import Predict

Phase = TypeVar("Phase", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Control:
    """A ControlNet, bound to its picture, and how much it has to say in which calls of the scheduler."""

    engine: Engine
    scale: float
    calls: frozenset[int]


@dataclass(frozen=True, eq=False)
class Denoiser:
    """Predicts the noise. The engines are bound to what stays the same in every step: (branches * num_images, ...).

    `channels` is what an inpainting UNet, say, is shown behind the latents, with as many rows. The ControlNets are
    called before the UNet, with the latents alone.
    """

    unet: Engine
    guidance: Guidance
    channels: F32 | None = None
    controls: Sequence[Control] = ()

    def __call__(self, sample: F32, timestep: F32, i: int) -> F32:
        """See `loop.Predict`."""
        feeds = {"sample": np.concatenate([sample] * self.guidance.branches), "timestep": timestep}
        residuals = add_residuals(self.controls, feeds, i)
        if self.channels is not None:
            feeds["sample"] = np.concatenate([feeds["sample"], self.channels], axis=1)
        return self.guidance(self.unet(feeds | residuals)["out_sample"])


def in_phases(make: Callable[[Phase], Predict], phase_of: Callable[[int], Phase]) -> Predict:
    """Calls what `make` makes of the phase that a call of the scheduler is in, made anew where that changes."""
    made = functools.lru_cache(maxsize=1)(make)
    return lambda sample, timestep, i: made(phase_of(i))(sample, timestep, i)


def add_residuals(controls: Sequence[Control], feeds: Mapping[str, Array], i: int) -> dict[str, F32]:
    """What the UNet is to add in call `i`, as its inputs: the ControlNets' sum (Zhang et al., arXiv:2302.05543).

    Where none has a say the first one is called, as the UNet wants an answer, with a scale of 0.
    """
    total: dict[str, F32] = {}
    for control in [control for control in controls if i in control.calls] or controls[:1]:
        scale = np.array([control.scale if i in control.calls else 0], np.float32)
        for name, residual in control.engine({**feeds, "conditioning_scale": scale}).items():
            key = name.replace("res_sample", "additional_residual")
            total[key] = total[key] + residual if key in total else residual
    return total
