"""Pictures: from the VAE's numbers to PIL, and to a file that says how it was made."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgediffusion.engines.errors import UsageError

from .arrays import F32
from .metadata import Parameters, save

if TYPE_CHECKING:
    from PIL.Image import Image


def to_uint8(sample: F32) -> NDArray[np.uint8]:
    """(batch, 3, height, width) in [-1, 1] -> (batch, height, width, 3) in 0 to 255: clipped, rounded half to even."""
    pixels = np.empty((len(sample), *sample.shape[2:], 3), np.uint8)
    for channel in range(3):  # one by one: what is in between stays in the cache
        scaled = sample[:, channel] * 0.5
        scaled += 0.5
        np.clip(scaled, 0, 1, out=scaled)
        scaled *= 255
        pixels[..., channel] = np.round(scaled, out=scaled)
    return pixels


def to_pil(sample: F32) -> list[Image]:
    """(batch, 3, height, width) in [-1, 1] -> RGB pictures."""
    from PIL import Image

    return [Image.fromarray(pixels) for pixels in to_uint8(sample)]


class ImageConverted(UserWarning):
    """A picture to start from has not the mode that is wanted."""


class ImageResized(UserWarning):
    """A picture to start from has not the size of the one to draw."""


def fit(image: Image, width: int, height: int, *, name: str = "image", mode: str = "RGB") -> Image:
    """A picture of any size and mode in that size and mode; warnings call it `name`.

    As diffusers' VaeImageProcessor does it: Lanczos' filter, the proportions left to the caller.

    Warns:
        ImageConverted: it has another mode.
        ImageResized: it has another size.
    """
    from PIL import Image

    if image.mode != mode:
        warnings.warn(f"{name} converted from {image.mode} to {mode}", ImageConverted, stacklevel=2)
        image = image.convert(mode)
    if image.size != (width, height):
        message = f"{name} resized from {image.width}x{image.height} to {width}x{height}"
        warnings.warn(message, ImageResized, stacklevel=2)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return image


def from_pil(image: Image) -> F32:
    """An RGB picture as the VAE encoder takes it, (1, 3, height, width) in [-1, 1]."""
    pixels: F32 = np.asarray(image, np.float32)
    return (2.0 * (pixels / 255.0) - 1.0).transpose(2, 0, 1)[None]


def light(mask: Image) -> NDArray[np.bool_]:
    """Where a grey picture is in the upper half of its range, (1, 1, height, width)."""
    return np.asarray(mask)[None, None] >= 128


def open_image(path: Path) -> Image:
    """The picture in a file, turned upright as its camera says.

    Raises:
        UsageError: it is no picture, or cannot be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise UsageError(f"{path}: not a picture; wanted one in a format such as PNG or JPEG") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: cannot be read as a picture ({error})") from None


@dataclass(frozen=True)
class GeneratedImage:
    """A picture and what made it."""

    image: Image
    parameters: Parameters

    def save(self, path: str | Path) -> None:
        """Write a file with the parameters in it: .png, .jpg or .webp.

        Raises:
            UsageError: the name ends otherwise, or the format cannot hold the picture.
            OSError: it cannot be written.
        """
        save(self.image, Path(path), self.parameters)
