"""The kinds of pipeline. To add one: a module here, and its line in `PIPELINES`. The loop is the same for all."""

from __future__ import annotations

from .base import Start, Task
from .text2image import TEXT2IMAGE

PIPELINES: dict[str, Task] = {"text2image": TEXT2IMAGE}

__all__ = ["PIPELINES", "Start", "Task"]
