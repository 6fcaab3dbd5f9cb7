"""Guidance: what the UNet is asked at each step, as the branches of one batch, and how the answers become one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .arrays import F32


@dataclass(frozen=True)
class Guidance:
    """Branches in the order in which diffusers has them in its batch.

    `reads_prompt` says of each branch whether it is given the prompt, rather than the negative prompt, and `sees_image`
    whether it is shown what is in the UNet's further channels, rather than zeros. `combine` takes the predictions of
    the branches, each (num_images, channels, height, width), to one.
    """

    reads_prompt: tuple[bool, ...]
    sees_image: tuple[bool, ...]
    combine: Callable[..., F32]

    @property
    def branches(self) -> int:
        """How many rows of the batch belong to one picture."""
        return len(self.reads_prompt)

    def texts(self, negative_prompt: F32, prompt: F32, num_images: int) -> F32:
        """Conditioning of the whole batch, (branches * num_images, ...), from (...) of either prompt."""
        return np.stack([prompt if reads else negative_prompt for reads in self.reads_prompt]).repeat(num_images, 0)

    def channels(self, image: F32) -> F32:
        """Further channels of the whole batch, (branches * num_images, ...), from (num_images, ...)."""
        return np.concatenate([image if sees else np.zeros_like(image) for sees in self.sees_image])

    def __call__(self, noise_pred: F32) -> F32:
        """(branches * num_images, ...) -> (num_images, ...)"""
        return self.combine(*np.split(noise_pred, self.branches))


NO_GUIDANCE = Guidance((True,), (True,), lambda cond: cond)


def classifier_free(guidance_scale: float) -> Guidance:
    """Ho, Salimans, arXiv:2207.12598; at 1 or less the negative prompt has no say, and half the work is saved."""
    if guidance_scale <= 1:
        return NO_GUIDANCE
    # Imagen's form of eq. 6 (arXiv:2205.11487, section 2.2): 1 is no guidance
    return Guidance((False, True), (True, True), lambda uncond, cond: uncond + guidance_scale * (cond - uncond))


def instruct(guidance_scale: float, image_guidance_scale: float) -> Guidance:
    """InstructPix2Pix, Brooks et al., arXiv:2211.09800 eq. 3: towards the picture, and from there to the prompt.

    As in diffusers there is none when the first scale is 1 or less, or the second less than 1.
    """
    if guidance_scale <= 1 or image_guidance_scale < 1:
        return NO_GUIDANCE
    return Guidance(
        (True, False, False),
        (True, True, False),
        lambda text, image, uncond: uncond + guidance_scale * (text - image) + image_guidance_scale * (image - uncond),
    )
