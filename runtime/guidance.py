"""Guidance: what the UNet is asked at each step, as the branches of one batch, and how the answers become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arrays import F32


@dataclass(frozen=True)
class Guidance:
    """Branches in the order in which diffusers has them in its batch.

    `reads_prompt` says of each branch whether it is given the prompt, rather than the negative prompt. `combine` takes
    their predictions, each (batch, channels, height, width), to one.
    """

    reads_prompt: tuple[bool, ...]
    combine: Callable[..., F32]

    def rows(self, negative_prompt: F32, prompt: F32, num_images: int) -> F32:
        """The conditioning of the whole batch, (branches * num_images, ...), from (...) of either prompt."""
        return np.stack([prompt if reads else negative_prompt for reads in self.reads_prompt]).repeat(num_images, 0)

    def __call__(self, noise_pred: F32) -> F32:
        """(branches * batch, ...) -> (batch, ...)"""
        return self.combine(*np.split(noise_pred, len(self.reads_prompt)))


NO_GUIDANCE = Guidance((True,), lambda cond: cond)


def classifier_free(guidance_scale: float) -> Guidance:
    """Ho, Salimans, arXiv:2207.12598; at 1 or less the negative prompt has no say, and half the work is saved."""
    if guidance_scale <= 1:
        return NO_GUIDANCE
    # Imagen's form of eq. 6 (arXiv:2205.11487, section 2.2): 1 is no guidance
    return Guidance((False, True), lambda uncond, cond: uncond + guidance_scale * (cond - uncond))
