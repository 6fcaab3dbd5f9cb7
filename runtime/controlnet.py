"""ControlNets: what each is given beside the noisy latents, and when. Zhang et al., arXiv:2302.05543."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgediffusion.engines.spec import Array

from .denoiser import Control
from .guidance import Guidance
from .images import from_pil

if TYPE_CHECKING:
    from .run import Run

# What each can be told, and what holds unless it is.
CONTROL_SETTINGS = {"controlnet_conditioning_scale": 1.0, "control_guidance_start": 0.0, "control_guidance_end": 1.0}


def bind_controlnets(run: Run, guidance: Guidance, constants: Mapping[str, Array]) -> list[Control]:
    """The bundle's ControlNets, each bound to a picture and to those of the UNet's `constants` that it takes."""
    bound = []
    told = zip(*(getattr(run, name) for name in CONTROL_SETTINGS), strict=True)
    for name, image, (scale, start, end) in zip(run.pipeline.controlnets, run.control_images, told, strict=True):
        engine = run.pipeline.bundle.engine(name)
        picture = (from_pil(image) + 1) / 2
        given = {**constants, "controlnet_cond": picture.repeat(guidance.branches * run.num_images, axis=0)}
        inputs = {spec.name: given[spec.name] for spec in engine.spec.inputs if spec.name in given}
        bound.append(Control(engine.bind(inputs), scale, _calls(run, start, end)))
    return bound


def _calls(run: Run, start: float, end: float) -> frozenset[int]:
    """The calls that lie wholly between two fractions of those of the run, in diffusers' arithmetic."""
    count = len(run.tables.timesteps) - run.first_call
    return frozenset(run.first_call + k for k in range(count) if k / count >= start and (k + 1) / count <= end)
