"""Pixels against diffusers' VaeImageProcessor."""

from __future__ import annotations

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor

from edgediffusion.runtime.images import to_pil


def test_every_rounding() -> None:
    # Every half between two pixel values, its float32 neighbours, what is beyond the ends, and values at random.
    halves = ((np.arange(-2, 258) + 0.5) / 127.5 - 1).astype(np.float32)
    values = np.concatenate([halves, np.nextafter(halves, np.float32(9)), np.nextafter(halves, np.float32(-9))])
    values = np.concatenate(
        [values, np.random.default_rng(0).normal(0, 0.7, 6 * 1024 - len(values)).astype(np.float32)]
    )
    sample = values.reshape(2, 3, 32, 32)
    theirs = VaeImageProcessor().postprocess(torch.from_numpy(sample), output_type="pil")
    for ours, reference in zip(to_pil(sample), theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(reference))
