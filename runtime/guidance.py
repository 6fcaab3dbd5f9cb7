"""Classifier-free guidance: Ho, Salimans, arXiv:2207.12598."""

from __future__ import annotations

import numpy as np

from .arrays import F32


def guide(noise_pred: F32, guidance_scale: float) -> F32:
    """The guided prediction (batch, ...) from (2 * batch, ...): unconditional first, as diffusers orders them."""
    uncond, cond = np.split(noise_pred, 2)
    # Imagen's form of eq. 6 (arXiv:2205.11487, section 2.2): 1 is no guidance
    return uncond + guidance_scale * (cond - uncond)
