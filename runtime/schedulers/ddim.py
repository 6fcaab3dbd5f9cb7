"""DDIM: Song, Meng, Ermon, Denoising Diffusion Implicit Models, arXiv:2010.02502."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import F32
from .base import Limit, LinearSampler, Move, Prediction, first_order_weights, pairs, x0_table
from .config import COMMON, OF_DIFFUSION, ConfigReader, SchedulerConfig, check_eta
from .limits import clip_limit, threshold_limit
from .schedule import alphas_cumprod, whole_timesteps

read_config = ConfigReader(
    reads=COMMON
    | {"rescale_betas_zero_snr", "set_alpha_to_one", "clip_sample", "clip_sample_range", "eta"}
    | {"thresholding", "dynamic_thresholding_ratio", "sample_max_value"},
    accepts={"prediction_type": OF_DIFFUSION},
    defaults=SchedulerConfig(timestep_spacing="leading", eta=0.0),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class LimitedDDIM(LinearSampler):
    """DDIM with `clip_sample` or `thresholding`: x0 is limited, the noise direction is still the network's own."""

    limit: Limit
    next_alphas: tuple[float, ...]

    def step(
        self, model_output: F32, i: int, latents: F32, history: tuple[F32, ...], noise: F32 | None
    ) -> tuple[F32, tuple[F32, ...]]:
        """See `Scheduler`."""
        result, history = super().step(model_output, i, latents, history, noise)
        x0 = self.prediction(model_output, i, latents)
        return result + self.next_alphas[i] * (self.limit(x0) - x0), history


def ddim(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents have alpha^2 + sigma^2 = 1.

    The config's `eta`, from 0 (no noise; the default) to 1 (as much as DDPM), is an argument of `step` in diffusers.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    check_eta(c)
    power = alphas_cumprod(c)
    timesteps = whole_timesteps(c, num_inference_steps)
    # diffusers steps down by a fixed stride, whatever the spacing.
    following = timesteps - c.num_train_timesteps // num_inference_steps
    final = 1.0 if c.set_alpha_to_one else power[0]
    powers = power[timesteps]
    next_powers = np.where(following >= 0, power[following], final)
    alphas, sigmas = np.sqrt(powers), np.sqrt(1 - powers)
    next_alphas, next_sigmas = np.sqrt(next_powers), np.sqrt(1 - next_powers)
    with np.errstate(divide="ignore"):
        levels = np.append(sigmas, next_sigmas[-1]) / np.append(alphas, next_alphas[-1])
    # eq. 16
    deviations = c.eta * np.sqrt((1 - next_powers) / (1 - powers) * (1 - powers / next_powers))
    kept_sigmas = np.sqrt(next_sigmas**2 - deviations**2)
    rows = pairs(*first_order_weights(alphas, sigmas, next_alphas, kept_sigmas))
    tables = LinearSampler(
        timesteps=timesteps.astype(np.float32),
        sigmas=levels,
        init_noise_sigma=1.0,
        noising=pairs(alphas, sigmas),
        prediction=Prediction(x0_table(c, alphas, sigmas)),
        moves=tuple((Move(row, noise=noise or None),) for row, noise in zip(rows, deviations.tolist(), strict=True)),
    )
    limit = threshold_limit(c) or clip_limit(c)
    if limit is None:
        return tables
    return LimitedDDIM(**vars(tables), limit=limit, next_alphas=tuple(next_alphas.tolist()))
