"""The UNet and all that conditions it, as the one function that the loop calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgediffusion.engines.base import Engine
from edgediffusion.engines.spec import Array

from .arrays import F32
from .guidance import Guidance


@dataclass(frozen=True, eq=False)
class Denoiser:
    """Predicts the noise. The engines are bound to what stays the same in every step: (branches * num_images, ...).

    `channels` is what an inpainting UNet, say, is shown behind the latents, with as many rows. The ControlNets are
    called before the UNet, with the latents alone.
    """

    unet: Engine
    guidance: Guidance
    channels: F32 | None = None
    controlnets: Sequence[Engine] = ()

    def __call__(self, sample: F32, timestep: F32, i: int) -> F32:
        """See `loop.Predict`."""
        feeds = {"sample": np.concatenate([sample] * self.guidance.branches), "timestep": timestep}
        residuals = add_residuals(self.controlnets, feeds)
        if self.channels is not None:
            feeds["sample"] = np.concatenate([feeds["sample"], self.channels], axis=1)
        return self.guidance(self.unet(feeds | residuals)["out_sample"])


def add_residuals(controlnets: Sequence[Engine], feeds: Mapping[str, Array]) -> dict[str, F32]:
    """The sum over the ControlNets of what the UNet is to add (Zhang et al., arXiv:2302.05543), as its inputs."""
    total: dict[str, F32] = {}
    for controlnet in controlnets:
        for name, residual in controlnet(feeds).items():
            key = name.replace("res_sample", "additional_residual")
            total[key] = total[key] + residual if key in total else residual
    return total
