"""Bars for people who wait, on stderr; where that is no terminal nothing is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgediffusion.engines.base import Report

from .timings import measured

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from .loop import Step
    from .run import Run


class Bars:
    """What one command does, each with the time that is left."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._said: set[str] = set()

    def say(self, line: str) -> None:
        """Show a line, once, however many engines say it."""
        if self._progress is not None and line not in self._said:
            self._said.add(line)
            self._progress.console.print(line, markup=False, highlight=False)

    def steps(self, run: Run) -> Iterable[Step]:
        """`run`, while it is watched."""
        if self._progress is None:
            return measured(run)
        for task in self._progress.tasks:  # of a batch before
            if task.finished:
                self._progress.remove_task(task.id)
        return self._progress.track(measured(run), len(run), description="denoising")

    def unseen(self, run: Run) -> Iterable[Step]:
        """`run`, while something else has the terminal; of engines, what was built before is shown."""
        for step in measured(run):
            if self._progress is not None:
                self._progress.stop()
            yield step

    def building(self, name: str) -> Report:
        """For the build of an engine, which may turn out not to be needed: the bar comes with the first report."""
        progress = self._progress
        if progress is None:
            return lambda fraction: None
        tasks: list[TaskID] = []

        def report(fraction: float) -> None:
            if not tasks:
                tasks.append(progress.add_task(f"building {name}", total=None))
            if fraction:  # until then nothing is known, which is all that TensorRT 8.6 tells
                progress.update(tasks[0], total=1.0, completed=fraction, visible=fraction < 1)

        return report


@contextmanager
def bars() -> Iterator[Bars]:
    """One display for all that a command does."""
    if not sys.stderr.isatty():
        yield Bars(None)
        return
    from rich.console import Console
    from rich.progress import Progress

    # rich would send what goes into a pipe to the terminal.
    console, piped = Console(stderr=True), not sys.stdout.isatty()
    with Progress(console=console, transient=True, redirect_stdout=not piped) as progress:
        yield Bars(progress)
