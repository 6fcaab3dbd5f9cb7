"""Image to image with a model distilled to a few steps: `strength` shortens the way, not the number of steps.

As diffusers' LatentConsistencyModelImg2ImgPipeline has it (Luo et al., arXiv:2310.04378).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..schedulers import find_sampler
from . import image2image

if TYPE_CHECKING:
    from ..run import Run


def scheduler_config(config: Mapping[str, Any], scheduler: str, strength: float) -> Mapping[str, Any]:
    """With the strength, where the sampler has timesteps of distillation to choose from."""
    return {**config, "strength": strength} if find_sampler(scheduler).few_steps else config


def first_call(run: Run) -> int:
    """With another sampler it is that of `image2image`."""
    return 0 if find_sampler(run.scheduler).few_steps else image2image.first_call(run)


DISTILLED_IMAGE2IMAGE = replace(image2image.IMAGE2IMAGE, first_call=first_call, scheduler_config=scheduler_config)
