"""Fourth-order improved PNDM, for networks trained on a sine schedule: Liu et al., arXiv:2202.09778."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .base import LinearSampler, Move, Prediction, pairs
from .config import ConfigReader
from .levels import check_steps
from .pndm import ADAMS_BASHFORTH

read_config = ConfigReader(reads=frozenset({"num_train_timesteps"}), accepts={"trained_betas": (None,)})


def ipndm(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents have alpha^2 + sigma^2 = 1, timesteps are 1 to 0.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    n = check_steps(read_config(config), num_inference_steps)
    sigmas = np.sin(np.append(np.linspace(1, 0, n + 1)[:-1], 0.0) * np.pi / 2) ** 2
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
        prediction=Prediction(pairs(sigmas[:-1], alphas[:-1])),
        moves=tuple(moves),
    )
