"""What a pipeline supplies: where denoising begins, and how it is guided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..arrays import F32
from ..guidance import Guidance, classifier_free
from ..noise import NoiseSource

if TYPE_CHECKING:
    from ..run import Run


@dataclass(frozen=True, eq=False)
class Start:
    """`latents` (num_images, channels, height, width) to hand to call `call` of the scheduler."""

    latents: F32
    call: int = 0


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of pipeline. `begin` draws from the noise in the order in which diffusers draws.

    `takes` are the settings that it cannot do without, and by which it is told from the others.
    """

    takes: frozenset[str] = frozenset()
    begin: Callable[[Run, NoiseSource], Start]
    guidance: Callable[[Run], Guidance] = lambda run: classifier_free(run.guidance_scale)
