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
        """Conditioning of the whole batch, (branches * num_images, ...), from (1 or num_images, ...) of either."""
        rows = [prompt if reads else negative_prompt for reads in self.reads_prompt]
        return np.concatenate([row.repeat(num_images // len(row), axis=0) for row in rows])

    def channels(self, image: F32) -> F32:
        """Further channels of the whole batch, (branches * num_images, ...), from (num_images, ...)."""
        return np.concatenate([image if sees else np.zeros_like(image) for sees in self.sees_image])

    def __call__(self, noise_pred: F32) -> F32:
        """(branches * num_images, ...) -> (num_images, ...)"""
        return self.combine(*noise_pred.reshape(self.branches, -1, *noise_pred.shape[1:]))


NO_GUIDANCE = Guidance((True,), (True,), lambda cond: cond)


def classifier_free(guidance_scale: float, guidance_rescale: float = 0) -> Guidance:
    """Ho, Salimans, arXiv:2207.12598; at 1 or less the negative prompt has no say, and half the work is saved.

    `guidance_rescale`, 0 to 1, is how far the result's standard deviation is brought back to that of the prompt's.
    """
    if guidance_scale <= 1:
        return NO_GUIDANCE

    def combine(uncond: F32, cond: F32) -> F32:
        # Imagen's form of eq. 6 (arXiv:2205.11487, section 2.2): 1 is no guidance
        guided = cond - uncond  # one new array, not three: a copy to the device takes no longer than an array
        guided *= guidance_scale
        guided += uncond
        return rescale(guided, cond, guidance_rescale) if guidance_rescale else guided

    return Guidance((False, True), (True, True), combine)


def rescale(guided: F32, cond: F32, guidance_rescale: float) -> F32:
    """Lin et al., arXiv:2305.08891 eqs. 15 and 16, for each picture: against over-exposure at high scales."""
    axes = tuple(range(1, cond.ndim))
    std = cond.std(axis=axes, keepdims=True) / guided.std(axis=axes, keepdims=True)
    rescaled: F32 = guided * (guidance_rescale * std + (1 - guidance_rescale))
    return rescaled


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
