"""The kinds of pipeline. To add one: a module here, and its line in `PIPELINES`. The loop is the same for all."""

from __future__ import annotations

from collections.abc import Iterable

from edgediffusion.engines.errors import UsageError

from .base import Start, Task
from .image2image import IMAGE2IMAGE
from .text2image import TEXT2IMAGE

PIPELINES: dict[str, Task] = {"text2image": TEXT2IMAGE, "image2image": IMAGE2IMAGE}
# What a run can start from beside a prompt.
INPUTS = frozenset[str]().union(*(task.takes for task in PIPELINES.values()))

__all__ = ["INPUTS", "PIPELINES", "Start", "Task", "choose"]


def choose(names: Iterable[str], settings: Iterable[str]) -> Task:
    """Of the pipelines `names`, which are those of a family, the one that takes what there is among `settings`.

    Raises:
        UsageError: there is none.
    """
    given = INPUTS.intersection(settings)
    tasks = [PIPELINES[name] for name in names]
    for task in tasks:
        if task.takes == given:
            return task
    wanted = ", or ".join(_list(task.takes) for task in tasks)
    raise UsageError(f"got {_list(given)}; this model wants {wanted}")


def _list(inputs: Iterable[str]) -> str:
    return " + ".join(["a prompt", *sorted(inputs)])
