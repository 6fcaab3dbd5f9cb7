"""Inputs of a graph for measuring: random, of the size that a generation has."""

from __future__ import annotations

import numpy as np

from edgediffusion.engines.spec import Array, GraphSpec


def random_feeds(spec: GraphSpec, sizes: dict[str, int], seed: int = 0) -> dict[str, Array]:
    """Standard normal latents and prompts, a timestep, tokens; `sizes` are those of the free dimensions."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for tensor in spec.fixed(sizes).inputs:
        shape: tuple[int, ...] = tuple(map(int, tensor.shape))
        values: Array = rng.standard_normal(shape)
        if tensor.dtype == "int64":
            values = rng.integers(0, 256, shape)
        elif tensor.name == "timestep":
            values = rng.integers(1, 1000, shape)
        elif tensor.name == "time_ids":
            values = rng.choice([0, 512, 1024], shape)
        elif tensor.name == "sample" and spec.name == "vae_encoder":
            values = np.tanh(values)
        feeds[tensor.name] = values.astype(tensor.dtype)
    return feeds
