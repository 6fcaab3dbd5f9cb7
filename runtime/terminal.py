"""A picture in a terminal that stays in its place while it changes: in pixels where the terminal says that it can.

Only what a terminal says of itself in the environment is believed: to ask it would take what is typed from the user.
"""

from __future__ import annotations

import base64
import io
import itertools
import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

CELL = 8, 16  # pixels of a character, for sixels: terminals seldom have smaller ones
MOST_ROWS = 24  # of a picture in pixels
_CHUNK = 4096  # Kitty's longest piece of a picture
_MULTIPLEXED = ("screen", "tmux")  # these keep pictures to themselves
# A picture and its size in characters, as what makes a terminal show it from the cursor on.
Encoder = Callable[["Image", int, int], str]


def kitty(picture: Image, columns: int, rows: int) -> str:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol: a PNG in pieces; the same number takes the former's place."""
    data = _png(picture)
    pieces = [data[k : k + _CHUNK] for k in range(0, len(data), _CHUNK)]
    first = f"a=T,f=100,q=2,C=1,i=1,p=1,c={columns},r={rows},"
    heads = itertools.chain([first], itertools.repeat(""))
    mores = [1] * (len(pieces) - 1) + [0]
    return "".join(
        f"\x1b_G{head}m={more};{piece}\x1b\\" for head, more, piece in zip(heads, mores, pieces, strict=False)
    )


def iterm2(picture: Image, columns: int, rows: int) -> str:
    """https://iterm2.com/documentation-images.html"""
    return f"\x1b]1337;File=inline=1;width={columns};height={rows}:{_png(picture)}\a"


def sixel(picture: Image, columns: int, rows: int) -> str:
    """DEC's sixels, VT330/VT340 Programmer Reference, chapter 14: bands of six rows, a colour at a time, run by run."""
    small = picture.resize((columns * CELL[0], rows * CELL[1])).quantize(64)
    palette = np.reshape(small.getpalette() or [], (-1, 3)) * 100 // 255
    pixels = np.asarray(small)
    colours = "".join(f"#{k};2;{r};{g};{b}" for k, (r, g, b) in enumerate(palette.tolist()))
    bands = (pixels[top : top + 6] for top in range(0, len(pixels), 6))
    return f'\x1bPq"1;1;{small.width};{small.height}{colours}{"-".join(map(_band, bands))}\x1b\\'


def _band(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> str:
    bits = 1 << np.arange(len(pixels))
    lines = []
    for colour in np.unique(pixels).tolist():
        signs = (bits @ (pixels == colour) + 63).tolist()
        runs = ((chr(sign), len(list(same))) for sign, same in itertools.groupby(signs))
        lines.append(f"#{colour}" + "".join(f"!{count}{sign}" if count > 3 else sign * count for sign, count in runs))
    return "$".join(lines)


def blocks(picture: Image, columns: int, rows: int) -> str:
    """Two pixels a character, its upper half and its lower one, in 24-bit colours."""
    return _blocks(picture, columns, rows, lambda r, g, b: f"2;{r};{g};{b}")


def blocks_256(picture: Image, columns: int, rows: int) -> str:
    """The same in the 6 x 6 x 6 colours of a palette of 256."""
    return _blocks(picture, columns, rows, lambda r, g, b: f"5;{16 + 36 * _sixth(r) + 6 * _sixth(g) + _sixth(b)}")


def _blocks(picture: Image, columns: int, rows: int, colour: Callable[[int, int, int], str]) -> str:
    from PIL.Image import Resampling

    pixels = np.asarray(picture.resize((columns, 2 * rows), Resampling.BOX)).tolist()
    lines = (
        "".join(f"\x1b[38;{colour(*up)};48;{colour(*down)}m▀" for up, down in zip(upper, lower, strict=True))
        for upper, lower in zip(pixels[::2], pixels[1::2], strict=True)
    )
    return "\x1b[0m\r\n".join(lines) + "\x1b[0m"


def _sixth(value: int) -> int:
    """The nearest of the palette's six levels: 0, 95, 135, 175, 215, 255."""
    return 0 if value < 48 else 1 if value < 115 else (value - 35) // 40


def _png(picture: Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()


def find_encoder(environ: Mapping[str, str]) -> Encoder:
    """What the terminal can show for certain."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    plain = blocks if environ.get("COLORTERM") in ("truecolor", "24bit") else blocks_256
    if "TMUX" in environ or term.startswith(_MULTIPLEXED):
        return plain
    if "KITTY_WINDOW_ID" in environ or term in ("xterm-kitty", "xterm-ghostty"):
        return kitty
    if program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
        return iterm2
    return sixel if term.startswith(("foot", "mlterm", "contour", "yaft")) else plain


class NoTerminal(UserWarning):
    """A picture cannot be shown."""


class Screen:
    """A picture over a line of text. Each takes the place of the one before."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str]) -> None:
        self._stream = stream
        self._encode = find_encoder(environ)
        self._rows = 0

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str]) -> Screen | None:
        """That of `stream`, where it is a terminal with colours.

        Warns:
            NoTerminal: it is none.
        """
        if stream.isatty() and environ.get("TERM") not in (None, "", "dumb"):
            return cls(stream, environ)
        warnings.warn("--preview: stderr is no terminal with colours, so nothing is shown", NoTerminal, stacklevel=2)
        return None

    def show(self, picture: Image, text: str) -> None:
        """As large as there is room for."""
        columns, rows = self._fit(picture)
        if rows != self._rows:
            self._stream.write("\r\x1b[J" if not self._rows else f"\r\x1b[{self._rows}A\x1b[J")
            self._stream.write("\n" * rows)
            self._rows = rows
        # The cursor is kept at the corner, since terminals leave it in different places after a picture.
        drawn = f"\r\x1b[{rows}A\x1b7{self._encode(picture, columns, rows)}\x1b8\x1b[{rows}B"
        self._stream.write(f"{drawn}\r{text}\x1b[K")
        self._stream.flush()

    def close(self) -> None:
        """Leave the last picture there, and go on below it."""
        if self._rows:
            self._rows = 0
            self._stream.write("\n")
            self._stream.flush()

    def _fit(self, picture: Image) -> tuple[int, int]:
        """Columns and rows of characters, which are twice as high as wide."""
        try:
            width, height = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):  # it has no size
            width, height = 80, 24
        rows = max(1, height - 2 if self._encode in (blocks, blocks_256) else min(height - 2, MOST_ROWS))
        columns = max(1, min(width - 1, round(2 * rows * picture.width / picture.height)))
        return columns, max(1, min(rows, round(columns * picture.height / picture.width / 2)))
