"""Runs that are watched: previews in a terminal, and kept for a moving picture of the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .images import GeneratedImage
from .metadata import save
from .plate import contact_sheet

if TYPE_CHECKING:
    from PIL.Image import Image

    from .loop import Step
    from .run import Run
    from .terminal import Screen

FRAME, LAST = 100, 2000  # milliseconds of a step, and of the picture


class Watcher:
    """Hands on the steps that `watch` does, and makes previews of them for `screen`, or to be kept."""

    def __init__(self, watch: Callable[[Run], Iterable[Step]], screen: Screen | None = None, *, keep: bool) -> None:
        self._watch = watch
        self._screen = screen
        self._keep = keep
        self._frames: list[list[Image]] = []
        self._drawn = 0

    def steps(self, run: Run) -> Iterable[Step]:
        """The steps of one batch."""
        return self._watch(run) if self._screen is None and not self._keep else self._previewed(run)

    def _previewed(self, run: Run) -> Iterator[Step]:
        self.close()
        self._frames, self._drawn = [], 0
        for i, step in enumerate(self._watch(run), 1):
            pictures = run.preview(step)
            if self._screen is not None:
                sheet = pictures[0] if len(pictures) == 1 else contact_sheet(pictures).image
                self._screen.show(sheet, f"step {i} of {len(run)}")
            if self._keep:
                self._frames.append(pictures)
            yield step

    def drawn(self, picture: GeneratedImage) -> Animation:
        """How `picture`, the next one of the batch, came to be; it takes its previews' place on the screen."""
        if self._screen is not None:
            self._screen.show(picture.image, "")
            self.close()
        self._drawn += 1
        return Animation([pictures[self._drawn - 1] for pictures in self._frames], picture)

    def close(self) -> None:
        """Go on below the last picture on the screen."""
        if self._screen is not None:
            self._screen.close()


@dataclass(frozen=True, eq=False)
class Animation:
    """The previews of a picture's steps, and the picture."""

    frames: list[Image]
    picture: GeneratedImage

    def save(self, path: Path) -> None:
        """Write an animated PNG or WebP with the picture's parameters; where a PNG cannot move it is the picture.

        Raises:
            UsageError, OSError: see `metadata.save`.
        """
        image = self.picture.image
        frames = [frame.resize(image.size) for frame in self.frames]  # those of a first pass are smaller
        first, *rest = [image, *frames, image] if path.suffix.lower() == ".png" else [*frames, image]
        duration = [FRAME] * len(frames) + [LAST]
        save(
            first,
            path,
            self.picture.parameters,
            save_all=True,
            append_images=rest,
            duration=duration,
            loop=0,
            default_image=True,
        )
