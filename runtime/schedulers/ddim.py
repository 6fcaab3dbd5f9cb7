"""DDIM without noise (eta = 0): Song, Meng, Ermon, Denoising Diffusion Implicit Models, arXiv:2010.02502."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgediffusion.engines.errors import UsageError

from ..arrays import F32
from .base import LinearMultistep, by_step, first_order_weights, x0_table
from .config import COMMON, ConfigReader, SchedulerConfig
from .schedule import alphas_cumprod, spaced_timesteps

read_config = ConfigReader(
    reads=COMMON | {"set_alpha_to_one", "clip_sample", "clip_sample_range"},
    accepts={"thresholding": (False,)},
    defaults=SchedulerConfig(timestep_spacing="leading"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ClippedDDIM(LinearMultistep):
    """DDIM with `clip_sample`: x0 is clipped, the noise direction is still the network's own."""

    clip_sample_range: float
    next_alphas: tuple[float, ...]

    def step(
        self, model_output: F32, i: int, latents: F32, history: tuple[F32, ...], noise: F32 | None
    ) -> tuple[F32, tuple[F32, ...]]:
        """See `Scheduler`."""
        result, history = super().step(model_output, i, latents, history, noise)
        x0 = self.predict_x0(model_output, i, latents)
        clipped = np.clip(x0, -self.clip_sample_range, self.clip_sample_range)
        return result + self.next_alphas[i] * (clipped - x0), history


def ddim(config: Mapping[str, Any], num_inference_steps: int) -> LinearMultistep:
    """The sampler for a `scheduler_config.json` of any class. Latents have alpha^2 + sigma^2 = 1.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    power = alphas_cumprod(c)
    timesteps = spaced_timesteps(c, num_inference_steps).round()
    if timesteps[0] >= len(power):
        raise UsageError(
            f"num_inference_steps {num_inference_steps} with steps_offset {c.steps_offset} starts at timestep "
            f"{timesteps[0]:.0f}, beyond the {len(power)} of the training; use fewer steps"
        )
    # diffusers steps down by a fixed stride, whatever the spacing.
    following = timesteps.astype(int) - c.num_train_timesteps // num_inference_steps
    final = 1.0 if c.set_alpha_to_one else power[0]
    powers = power[timesteps.astype(int)]
    next_powers = np.where(following >= 0, power[following], final)
    alphas, sigmas = np.sqrt(powers), np.sqrt(1 - powers)
    next_alphas, next_sigmas = np.sqrt(next_powers), np.sqrt(1 - next_powers)
    with np.errstate(divide="ignore"):
        levels = np.append(sigmas, next_sigmas[-1]) / np.append(alphas, next_alphas[-1])
    tables = LinearMultistep(
        timesteps=timesteps.astype(np.float32),
        sigmas=levels,
        init_noise_sigma=1.0,
        to_x0=x0_table(c, alphas, sigmas),
        weights=tuple((row,) for row in by_step(*first_order_weights(alphas, sigmas, next_alphas, next_sigmas))),
    )
    if not c.clip_sample:
        return tables
    return ClippedDDIM(**vars(tables), clip_sample_range=c.clip_sample_range, next_alphas=tuple(next_alphas.tolist()))
