"""The UNet and all that conditions it, as the one function that the loop calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgediffusion.engines.base import Engine
from edgediffusion.engines.spec import Array

from .arrays import F32
from .guidance import Guidance


@dataclass(frozen=True, eq=False)
class Denoiser:
    """Predicts the noise. `unet` is bound to what stays the same in every step: see `Denoiser.over`."""

    unet: Engine
    guidance: Guidance

    @classmethod
    def over(cls, unet: Engine, guidance: Guidance, constants: Mapping[str, Array]) -> Denoiser:
        """`constants` are the UNet's inputs beside `sample` and `timestep`, (branches * batch, ...)."""
        return cls(unet.bind(constants), guidance)

    def __call__(self, sample: F32, timestep: F32, i: int) -> F32:
        """See `loop.Predict`."""
        rows = np.concatenate([sample] * len(self.guidance.reads_prompt))
        return self.guidance(self.unet({"sample": rows, "timestep": timestep})["out_sample"])
