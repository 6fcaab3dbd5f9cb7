"""The kinds of pipeline. To add one: a module here, and its line in `PIPELINES`. The loop is the same for all."""

from __future__ import annotations

from collections.abc import Iterable

from edgediffusion.engines.errors import UsageError

from .base import Start, Task
from .distilled_image2image import DISTILLED_IMAGE2IMAGE
from .handover import HANDOVER
from .image2image import IMAGE2IMAGE
from .inpaint import INPAINT
from .masked_latents import MASKED_LATENTS
from .pix2pix import PIX2PIX
from .text2image import TEXT2IMAGE

PIPELINES: dict[str, Task] = {
    "distilled_image2image": DISTILLED_IMAGE2IMAGE,
    "handover": HANDOVER,
    "image2image": IMAGE2IMAGE,
    "inpaint": INPAINT,
    "masked_latents": MASKED_LATENTS,
    "pix2pix": PIX2PIX,
    "text2image": TEXT2IMAGE,
}
# What a run can start from beside a prompt, and what only some can be told.
INPUTS = frozenset[str]().union(*(task.takes for task in PIPELINES.values()))
OPTIONS = frozenset[str]().union(*(task.options for task in PIPELINES.values()))

__all__ = ["PIPELINES", "Start", "Task", "choose"]


def choose(names: Iterable[str], settings: Iterable[str]) -> Task:
    """Of the pipelines `names`, which are those of a family, the one that takes what there is among `settings`.

    Raises:
        UsageError: there is none, or one of `settings` has no say in it.
    """
    given = set(settings)
    tasks = {PIPELINES[name].takes: PIPELINES[name] for name in names}
    if (inputs := INPUTS & given) not in tasks:
        raise UsageError(f"got {_list(inputs)}; this model wants {', or '.join(map(_list, tasks))}")
    task = tasks[inputs]
    if idle := sorted(OPTIONS & given - task.options):
        raise UsageError(f"{idle[0]} has no effect on what this model draws from {_list(inputs)}; leave it out")
    return task


def _list(inputs: Iterable[str]) -> str:
    return " + ".join(["a prompt", *sorted(inputs)])
