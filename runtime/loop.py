"""The denoising loop. Start reading here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgediffusion.engines.base import Engine

from .arrays import F32
from .guidance import guide
from .noise import NoiseSource
from .schedulers import Scheduler


@dataclass(frozen=True)
class Step:
    """Where a run stands after one call of the UNet: `latents` (batch, 4, height, width), float32.

    `history` is what the sampler remembers; with it, `denoise` goes on from here as if it had never stopped.
    """

    index: int
    timestep: float
    latents: F32
    history: tuple[F32, ...]


def denoise(
    unet: Engine,
    scheduler: Scheduler,
    latents: F32,
    prompt_embeds: F32,
    negative_prompt_embeds: F32,
    guidance_scale: float,
    noise: NoiseSource,
    *,
    start: int = 0,
    history: tuple[F32, ...] = (),
) -> Iterator[Step]:
    """Yield after each step; the caller shows progress, decodes previews, or stops.

    `latents` are noise times `scheduler.init_noise_sigma`, or those at step `start`. Embeddings are (n, 77, width).
    """
    guided = guidance_scale > 1  # else the negative prompt has no say, and half the work is saved
    embeds = np.concatenate([negative_prompt_embeds, prompt_embeds]) if guided else prompt_embeds
    bound_unet = unet.bind({"encoder_hidden_states": embeds})
    for i in range(start, len(scheduler.timesteps)):
        timestep = scheduler.timesteps[i : i + 1]
        sample = scheduler.scale_model_input(latents, i)
        sample = np.concatenate([sample, sample]) if guided else sample
        noise_pred = bound_unet({"sample": sample, "timestep": timestep})["out_sample"]
        if guided:
            noise_pred = guide(noise_pred, guidance_scale)
        fresh = noise.normal(latents.shape[1:]) if scheduler.draws_noise(i) else None
        latents, history = scheduler.step(noise_pred, i, latents, history, fresh)
        yield Step(i, float(timestep[0]), latents, history)
