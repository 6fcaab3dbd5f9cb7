"""What a pipeline supplies: where denoising begins, and how it is guided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..arrays import F32
from ..guidance import NO_GUIDANCE, Guidance, classifier_free
from ..loop import AfterStep
from ..noise import NoiseSource

if TYPE_CHECKING:
    from ..run import Run


# The options of those that a second pass can follow: in a larger size, or of another model.
ENLARGED = frozenset({"hires_scale", "hires_strength", "hires_upscaler"})
REFINED = frozenset({"denoising_end", "refiner"})


@dataclass(frozen=True, eq=False)
class Start:
    """The latents (num_images, channels, height, width) to begin with.

    `channels` is what the UNet is shown behind them in every step, (num_images, further channels, height, width).
    `after_step` is what becomes of the latents after each.
    """

    latents: F32
    channels: F32 | None = None
    after_step: AfterStep = lambda latents, i: latents


def guide(run: Run) -> Guidance:
    """Classifier-free guidance, unless the UNet takes the scale as an input: then it was distilled with guidance."""
    distilled = run.pipeline.bundle.manifest.takes_guidance_scale
    return NO_GUIDANCE if distilled else classifier_free(run.guidance_scale, run.guidance_rescale)


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of pipeline. `begin` draws from the noise in the order in which diffusers draws.

    `takes` are the settings that it cannot do without, and by which it is told from the others; `options` are those
    that have a say in it and not in all others. `first_call` is the call of the scheduler that gets the latents.
    `scheduler_config` is what becomes of the model's for a sampler and a strength.
    `defaults` go before those of the family. One that `enlarges` takes latents of another size.
    """

    begin: Callable[[Run, NoiseSource], Start]
    takes: frozenset[str] = frozenset()
    options: frozenset[str] = frozenset()
    defaults: Mapping[str, float] = field(default_factory=dict)
    enlarges: bool = False
    first_call: Callable[[Run], int] = lambda run: 0
    scheduler_config: Callable[[Mapping[str, Any], str, float], Mapping[str, Any]] = lambda config, name, strength: (
        config
    )
    guidance: Callable[[Run], Guidance] = guide
