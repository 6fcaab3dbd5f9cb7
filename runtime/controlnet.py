"""ControlNets: what each is given beside the noisy latents. Zhang et al., arXiv:2302.05543."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgediffusion.engines.base import Engine
from edgediffusion.engines.spec import Array

from .guidance import Guidance
from .images import from_pil

if TYPE_CHECKING:
    from .run import Run


def bind_controlnets(run: Run, guidance: Guidance, constants: Mapping[str, Array]) -> list[Engine]:
    """The bundle's ControlNets, each bound to a picture, a scale, and those of the UNet's `constants` that it takes."""
    bound = []
    controls = zip(run.pipeline.controlnets, run.control_images, run.controlnet_conditioning_scale, strict=True)
    for name, image, scale in controls:
        engine = run.pipeline.bundle.engine(name)
        picture = (from_pil(image) + 1) / 2
        given = {
            **constants,
            "controlnet_cond": picture.repeat(guidance.branches * run.num_images, axis=0),
            "conditioning_scale": np.array([scale], np.float32),
        }
        bound.append(engine.bind({spec.name: given[spec.name] for spec in engine.spec.inputs if spec.name in given}))
    return bound
