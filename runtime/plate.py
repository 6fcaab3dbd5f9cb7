"""Many pictures on one: a contact sheet, and a plate of variants with what they vary in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .metadata import format_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

_GAP = 4  # pixels between pictures
_FONT = 14  # pixels


@dataclass(frozen=True, eq=False)
class Sheet:
    """A picture of pictures; it is no run's, and carries no parameters."""

    image: Image

    def save(self, path: Path) -> None:
        """Write it in the format that the name says.

        Raises:
            OSError: it cannot be written.
        """
        self.image.save(path, format_of(path))


def variants(sweep: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]) -> list[list[dict[str, Any]]]:
    """The settings of each cell, in rows: the last option of `sweep` goes across, the others' product goes down.

    `sweep` has for each option its values, as texts and as the settings that they are.
    """
    *down, across = [[settings for _, settings in values] for values in sweep.values()]
    rows = [_merged(*row) for row in itertools.product(*down)]
    return [[_merged(row, cell) for cell in across] for row in rows]


def labels(sweep: Mapping[str, Sequence[tuple[str, object]]]) -> tuple[list[str], list[str]]:
    """Of the rows and of the columns."""
    *down, across = [[f"{name} {text}" for text, _ in values] for name, values in sweep.items()]
    return [", ".join(row) for row in itertools.product(*down)], across


def contact_sheet(pictures: Sequence[Image]) -> Sheet:
    """Pictures in reading order, as near to a square as their number allows; without labels."""
    width = math.ceil(math.sqrt(len(pictures)))
    rows = [pictures[k : k + width] for k in range(0, len(pictures), width)]
    return plate(rows, [""] * len(rows), [""] * width)


def plate(rows: Sequence[Sequence[Image]], row_labels: Sequence[str], column_labels: Sequence[str]) -> Sheet:
    """Rows of pictures on white, with a label for each row and column; an empty one takes no room."""
    from PIL import Image, ImageDraw

    every = [picture for row in rows for picture in row]
    cell = [max(picture.size[axis] for picture in every) for axis in (0, 1)]
    canvas = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left, top = _margin(canvas, row_labels, 0), _margin(canvas, column_labels, 1)
    widest = max(_extent(canvas, label)[0] for label in column_labels)
    step = [max(cell[0], math.ceil(widest)) + _GAP, cell[1] + _GAP]
    size = left + step[0] * len(column_labels) + _GAP, top + step[1] * len(rows) + _GAP
    sheet = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(sheet)
    for i, label in enumerate(row_labels):
        canvas.text((_GAP, top + _GAP + step[1] * i + cell[1] // 2), label, "black", _font(), anchor="lm")
    for j, label in enumerate(column_labels):
        canvas.text((left + _GAP + step[0] * j, top), label, "black", _font(), anchor="lb")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet.paste(picture, (left + _GAP + step[0] * j, top + _GAP + step[1] * i))
    return Sheet(sheet)


def _merged(*settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for some in settings for name, value in some.items()}


def _margin(canvas: ImageDraw, texts: Sequence[str], axis: int) -> int:
    """Room for labels; none where there is no text."""
    return math.ceil(max(_extent(canvas, text)[axis] for text in texts)) + _GAP if any(texts) else 0


def _extent(canvas: ImageDraw, text: str) -> tuple[float, float]:
    left, top, right, bottom = canvas.textbbox((0, 0), text or " ", _font())
    return right - left if text else 0, max(bottom - top, _FONT)


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(_FONT)
