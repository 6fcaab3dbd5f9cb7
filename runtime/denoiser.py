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
    """Predicts the noise. `unet` is bound to what stays the same in every step, `channels` follow the latents'."""

    unet: Engine
    guidance: Guidance
    channels: F32 | None = None

    @classmethod
    def over(
        cls, unet: Engine, guidance: Guidance, constants: Mapping[str, Array], channels: F32 | None = None
    ) -> Denoiser:
        """With the UNet's inputs beside `sample` and `timestep` as `constants`, (branches * num_images, ...).

        `channels` is what an inpainting UNet, say, is shown behind the latents, (num_images, further channels, ...).
        """
        return cls(unet.bind(constants), guidance, None if channels is None else guidance.channels(channels))

    def __call__(self, sample: F32, timestep: F32, i: int) -> F32:
        """See `loop.Predict`."""
        rows = np.concatenate([sample] * self.guidance.branches)
        if self.channels is not None:
            rows = np.concatenate([rows, self.channels], axis=1)
        return self.guidance(self.unet({"sample": rows, "timestep": timestep})["out_sample"])
