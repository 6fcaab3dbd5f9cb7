"""Many pictures, a batch at a time: as many at once as fit into memory."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from edgediffusion.engines.errors import OutOfMemory

from .conditioning import lengths
from .images import GeneratedImage
from .memory import free_memory, resident_memory
from .prompts import EMBEDS, Texts

if TYPE_CHECKING:
    from .loop import Step
    from .run import Run

AUTO = "auto"
LARGEST = 64  # at once, where it is for us to say: what is drawn is written sooner
SHARE = 0.7  # of the free memory; the rest is for what allocations waste, and for others
# A step's least bytes per pixel of a picture, where the process had the memory already: 64 float32 of width 64 channels
# at an eighth of the size.
_LEAST = 4 * 64

PER_PICTURE = ("latents", *Texts._fields, *EMBEDS)  # fields of a run that may have an entry for each picture


class SmallerBatch(UserWarning):
    """A batch did not fit into memory."""


class Room:
    """What the pictures of one pipeline take of this machine's memory, as far as it was seen."""

    def __init__(self) -> None:
        self._one = 0.0  # bytes that a step takes for one picture
        self._pixels = 0  # of the batch of the UNet for that picture
        self._held = 0.0  # bytes of the largest batch so far: the process has them

    def fitting(self, run: Run) -> int:
        """How many of its pictures can be drawn at once; where nothing was drawn yet, a step of one tells."""
        if (free := free_memory()) is None:
            return 1
        if not self._one:
            with self.watched(part(run, 0, 1)) as trial:
                next(iter(trial))
        fits = (self._held + SHARE * free) / self._each(run)
        return int(max(1, min(fits, LARGEST, run.num_images)))

    @contextmanager
    def watched(self, run: Run) -> Iterator[Run]:
        """Learn what a picture takes from the first batch there is; later ones use what the process has then."""
        if self._one or free_memory() is None:
            yield run
            return
        before = resident_memory()
        yield run
        self._pixels = _pixels(run)
        self._one = max((resident_memory() - before) / run.num_images, _LEAST * self._pixels)

    def drawn(self, run: Run) -> None:
        """Learn that it was possible."""
        self._held = max(self._held, run.num_images * self._each(run)) if self._one else 0.0

    def _each(self, run: Run) -> float:
        """Bytes for one picture; of a larger one by the square, for attention."""
        ratio = max(map(_pixels, (run, run.then or run))) / self._pixels
        return self._one * max(ratio, ratio * ratio)


def draw(run: Run, watch: Callable[[Run], Iterable[Step]] = iter) -> Iterator[GeneratedImage]:
    """The pictures of `run` in order, `run.batch_size` at a time; each is the one that it would be alone.

    So those of one batch have prompts of as many chunks: an empty chunk changes a picture. Where memory runs out, it
    goes on with half as many at once. `watch` hands on the steps of a batch.

    Raises:
        EngineError: a picture alone fails for want of memory, or for another reason.

    Warns:
        SmallerBatch: memory ran out.
    """
    first, largest, long = 0, _largest(run), lengths(run)
    while first < run.num_images:
        batch = part(run, first, min(largest, _as_long(long, first, run.num_images)))
        with run.pipeline.room.watched(batch):
            images = _images(batch, watch)
        if images is None:
            largest = batch.num_images // 2
            message = f"out of memory with {batch.num_images} pictures at once; going on with {largest}"
            warnings.warn(message, SmallerBatch, stacklevel=2)
            continue
        run.pipeline.room.drawn(batch)
        yield from images
        first += batch.num_images


def _as_long(long: Sequence[tuple[int, ...]], first: int, num_images: int) -> int:
    """How many pictures, from `first` on, have prompts as long as its own; `long` has one entry where all have one."""
    if len(long) == 1:
        return num_images - first
    return sum(1 for _ in itertools.takewhile(long[first].__eq__, long[first:]))


def called_back(callback: Callable[[Run, Step], object], run: Run) -> Iterator[Step]:
    """The steps of `run`, each told to `callback` as well."""
    for step in run:
        callback(run, step)
        yield step


def part(run: Run, first: int, count: int) -> Run:
    """That of `run` which draws `count` of its pictures, from `first` on."""
    every = {name: getattr(run, name) for name in PER_PICTURE}
    some = {name: value[first : first + count] for name, value in every.items() if _one_each(value, run.num_images)}
    return dataclasses.replace(run, seed=run.seed + first, num_images=count, batch_size=None, **some)


def _one_each(value: object, count: int) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) and len(value) == count


def batch_limit(run: Run) -> int | None:
    """How many pictures at once are told, or all that a static bundle takes; None where neither is."""
    if isinstance(run.batch_size, int):
        return run.batch_size
    if run.batch_size is None or run.pipeline.bundle.manifest.static is None:
        return None
    rows = run.pipeline.bundle.manifest.graphs["unet"].spec.inputs[0].shape[0]
    assert isinstance(rows, int)
    return max(1, rows // run.task.guidance(run).branches)


def _largest(run: Run) -> int:
    if (limit := batch_limit(run)) is not None:
        return limit
    if run.batch_size is None or run.num_images == 1 or run.pipeline.bundle.builds_engines:
        return run.num_images
    if run.pipeline.bundle.low_memory:
        return 1
    return run.pipeline.room.fitting(run)


def _images(batch: Run, watch: Callable[[Run], Iterable[Step]]) -> list[GeneratedImage] | None:
    """None where memory runs out; what it held is free again then. One alone must do."""
    try:
        for step in watch(batch):
            latents = step.latents
        return batch.images(latents)
    except (OutOfMemory, MemoryError):
        if batch.num_images == 1 or batch.pipeline.bundle.manifest.static is not None:
            raise
        return None


def _pixels(run: Run) -> int:
    return run.width * run.height * run.task.guidance(run).branches
