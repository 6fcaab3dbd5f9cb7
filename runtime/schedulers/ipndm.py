"""Fourth-order improved PNDM, for networks trained on a sine schedule: Liu et al., arXiv:2202.09778."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgediffusion.engines.errors import UsageError

from .base import LinearSampler, Move, Prediction, pairs
from .config import ConfigReader
from .levels import check_steps
from .pndm import ADAMS_BASHFORTH

read_config = ConfigReader(reads=frozenset({"num_train_timesteps", "trained_betas"}), accepts={})


def ipndm(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents have alpha^2 + sigma^2 = 1, timesteps are 1 to 0.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    n = check_steps(c, num_inference_steps)
    # As in diffusers, where trained_betas are the levels themselves.
    sigmas = np.sin(np.linspace(1, 0, n + 1) * np.pi / 2) ** 2 if c.trained_betas is None else np.array(c.trained_betas)
    if len(sigmas) != n + 1:
        raise UsageError(f"trained_betas of {len(sigmas)} values; ipndm wants num_inference_steps + 1, {n + 1}")
    alphas = np.sqrt(1 - sigmas**2)
    moves = []
    for i in range(n):
        # Where there is noise alone, the noise is the latents.
        of_latents = alphas[i + 1] / alphas[i] if alphas[i] > 1e-8 else 0.0
        of_noise = sigmas[i + 1] - of_latents * sigmas[i]
        moves.append(
            tuple(
                Move((float(of_latents), *(float(of_noise) * w for w in row)), (1, *range(2, k + 2))[:3])
                for k, row in enumerate(ADAMS_BASHFORTH)
            )
        )
    with np.errstate(divide="ignore"):
        levels = sigmas / alphas
    return LinearSampler(
        timesteps=(np.arctan2(sigmas, alphas) / np.pi * 2)[:-1].astype(np.float32),
        sigmas=levels,
        init_noise_sigma=1.0,
        noising=pairs(alphas[:-1], sigmas[:-1]),
        prediction=Prediction(pairs(sigmas[:-1], alphas[:-1]), to_x0=pairs(alphas[:-1], -sigmas[:-1])),
        moves=tuple(moves),
    )
