"""DPM-Solver++ (2S) of the diffusion SDE: Lu et al., arXiv:2211.01095, in the form of k-diffusion's sample_dpmpp_sde.

Noise is the increment of one Brownian motion over sigma: the step from s to t past a middle m has to use the sum of the
increments from s to m and from m to t. A step is two calls; the noise of the first is remembered for the second, so
that independent normal noise at each call makes that motion. `noise_brownian.py` has torchsde's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .ancestral import down_and_up
from .base import LinearSampler, Move, Prediction, x0_table
from .dpm2 import read_config, with_midpoints
from .euler import exploding_sampler
from .levels import exploding_levels


def dpmpp_sde(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class: 2 n - 1 calls. Latents are x0 + sigma * noise.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    if c.sigmas == "karras":
        c = replace(c, sigma_min=None, sigma_max=None)  # as in diffusers, of this sampler and lms
    levels = exploding_levels(c, num_inference_steps)
    calls = with_midpoints(c, levels, levels.sigmas[1:-1])
    sigmas = calls.sigmas
    moves: list[tuple[Move, ...]] = []
    for i in range(0, len(sigmas) - 2, 2):
        s, m, t = sigmas[i : i + 3]
        (down_m, down_t), (up_m, up_t) = down_and_up(np.array([s, s]), np.array([m, t]))
        before, after = np.sqrt((s - m) / (s - t)), np.sqrt((m - t) / (s - t))
        moves.append((Move((float(down_m / s), float(1 - down_m / s)), keep=(0, -1), noise=float(up_m)),))
        row = (0.0, float(1 - down_t / s), float(down_t / s), float(up_t * before))
        moves.append((Move(row, noise=float(up_t * after)),))
    moves.append((Move((0.0, 1.0)),))
    x0 = Prediction(x0_table(c, np.ones_like(sigmas[:-1]), sigmas[:-1]))
    return exploding_sampler(c, calls, x0, tuple(moves))
