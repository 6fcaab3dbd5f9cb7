"""Colours of the pictures: the dominant one and its name, and turning it into another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

# upper hue bound in degrees -> name; bounds set by eye on the pictures
HUE_NAMES = (
    (12, "red"),
    (34, "orange"),
    (39, ""),
    (68, "yellow"),
    (163, "green"),
    (185, ""),
    (253, "blue"),
    (297, "purple"),
    (343, "pink"),
)


@dataclass(frozen=True)
class Target:
    """Where a recolouring goes: hue in degrees, bounds of the saturation and value of the dominant colour there."""

    hue: float
    saturation: tuple[float, float]
    value: tuple[float, float]


TARGETS: dict[str, Target] = {
    "red": Target(357, (0.80, 0.92), (0.80, 0.95)),
    "orange": Target(27, (0.85, 0.92), (0.92, 1.00)),
    "yellow": Target(49, (0.80, 0.92), (0.95, 1.00)),
    "green": Target(125, (0.65, 0.80), (0.60, 0.80)),
    "blue": Target(214, (0.75, 0.90), (0.75, 0.97)),
    "purple": Target(273, (0.60, 0.80), (0.65, 0.90)),
    "pink": Target(328, (0.42, 0.50), (0.95, 1.00)),  # a strong pink is magenta
}
HALF_WINDOW = 60.0  # degrees around the dominant hue that recolouring moves; the outer third fades


@dataclass(frozen=True)
class Dominant:
    """The strongest hue of a picture."""

    hue: float  # degrees
    saturation: float
    value: float
    share: float  # of the coloured pixels, by chroma, those that lie within HALF_WINDOW of `hue`
    cover: float  # of the foreground pixels, those that lie within HALF_WINDOW of `hue`


def rgb_to_hsv(image: U8) -> tuple[F32, F32, F32]:
    """(..., 3) uint8 -> hue in degrees [0, 360), saturation and value in [0, 1], each (...) float32."""
    rgb = image.astype(np.float32) / 255
    value = rgb.max(axis=-1)
    chroma = value - rgb.min(axis=-1)
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    safe = np.where(chroma > 0, chroma, 1)
    sextant = np.where(value == r, ((g - b) / safe) % 6, np.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    hue = np.where(chroma > 0, sextant * 60, 0) % 360
    saturation = chroma / np.where(value > 0, value, 1)
    return hue.astype(np.float32), saturation.astype(np.float32), value.astype(np.float32)


def hsv_to_rgb(hue: F32, saturation: F32, value: F32) -> U8:
    """Inverse of `rgb_to_hsv`; any hue in degrees. Rounds half to even."""
    k = (np.array([5, 3, 1], np.float32) + (hue / 60)[..., None]) % 6
    ramp = np.clip(np.minimum(k, 4 - k), 0, 1)
    rgb = value[..., None] * (1 - saturation[..., None] * ramp)
    return np.asarray((np.clip(rgb, 0, 1) * 255).round(), np.uint8)


def hue_distance(a: F32, b: float) -> F32:
    """Degrees in [0, 180] between hues in degrees."""
    return np.asarray(np.abs((a - b + 180) % 360 - 180), np.float32)


def smoothstep(x: F32, low: float, high: float) -> F32:
    """0 below `low`, 1 above `high`, 3t^2 - 2t^3 between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def dominant_colour(image: U8, foreground: NDArray[np.bool_]) -> Dominant | None:
    """The strongest hue of an (h, w, 3) uint8 picture within `foreground` (h, w); None where hardly any is coloured."""
    hue, saturation, value = rgb_to_hsv(image)
    chroma = saturation * value
    mask = foreground & (chroma > 0.15)
    if mask.sum() < 0.02 * mask.size:
        return None
    h, weight = hue[mask], chroma[mask]
    bins = np.bincount((h / 10).astype(int) % 36, weight, 36)
    smooth = bins + np.roll(bins, 1) + np.roll(bins, -1)
    centre = float(smooth.argmax() * 10 + 5)
    near = hue_distance(h, centre) < 30
    offset = ((h - centre + 180) % 360 - 180)[near]
    centre = (centre + float(np.average(offset, weights=weight[near]))) % 360
    core = hue_distance(h, centre) < 30
    return Dominant(
        hue=centre,
        saturation=float(np.median(saturation[mask][core])),
        value=float(np.median(value[mask][core])),
        share=float(weight[hue_distance(h, centre) < HALF_WINDOW].sum() / weight.sum()),
        cover=float((hue_distance(h, centre) < HALF_WINDOW).sum() / foreground.sum()),
    )


def colour_name(hue: float, saturation: float, value: float) -> str:
    """The plain English word for a colour, '' between words. Hue in degrees, the others in [0, 1]."""
    if value < 0.22:
        return "black"
    if saturation < 0.12:
        return "grey" if value < 0.8 else "white"
    if saturation * value < 0.2:
        return ""
    name = next((name for bound, name in HUE_NAMES if hue % 360 < bound), "red")
    if 8 < hue % 360 < 45 and (value < 0.72 or (saturation < 0.7 and value < 0.82)):
        return "brown"
    if name == "orange" and saturation < 0.7:  # tan
        return ""
    if name == "red" and saturation < 0.5:
        return "pink" if value > 0.8 else ""
    if name == "pink" and saturation > 0.7 and hue > 334:  # crimson, what the pictures use for red
        return "red"
    if name == "pink" and saturation < 0.45 and value < 0.85:  # tinted wood and steel
        return ""
    if name in ("purple", "blue") and value < 0.5:  # dark things tinted, such as a black cat
        return ""
    return name


def recolour(image: U8, hue_shift: float, *, hue: float | None = None, saturation: float = 1, value: float = 1) -> U8:
    """Turn the hues of an (h, w, 3) uint8 RGB picture by `hue_shift` degrees; white, greys and black stay.

    With `hue` only pixels whose hue is within HALF_WINDOW degrees of it move. `saturation` and `value` are gains on
    the pixels that move: g > 1 maps x to 1 - (1 - x)**g, so that shading survives, g < 1 maps x to g * x.
    """
    out = image.copy()
    moving = np.ptp(image, axis=-1) > 4
    pixels = image[moving]
    h, s, v = rgb_to_hsv(pixels)
    mix = smoothstep(s * v, 0.02, 0.08)
    if hue is not None:
        mix = mix * (1 - smoothstep(hue_distance(h, hue), HALF_WINDOW * 2 / 3, HALF_WINDOW))
    # highlights and antialiased edges towards white have low saturation: the gains fade out there
    fade = smoothstep(s, 0.0, 0.35)
    turned = hsv_to_rgb(h + np.float32(hue_shift), _apply(s, saturation, fade), _apply(v, value, fade))
    out[moving] = (pixels + mix[:, None] * (turned.astype(np.float32) - pixels)).round()
    return out


def _apply(x: F32, gain: float, fade: F32) -> F32:
    moved = 1 - (1 - x) ** np.float32(gain) if gain > 1 else x * np.float32(gain)
    return np.asarray(x + fade * (moved - x), np.float32)


def _gain(have: float, bounds: tuple[float, float]) -> float:
    """The gain, as `recolour` takes it and at most 4, that brings `have` within bounds."""
    low, high = bounds
    if have > high:
        return high / have
    if have >= low:
        return 1.0
    return float(np.clip(np.log(1 - min(low, 0.99)) / np.log(1 - max(have, 0.05)), 1, 4))


def recolour_to(image: U8, hue: float, saturation: float, value: float, target: str) -> U8:
    """The picture with its dominant colour (hue in degrees, the others in [0, 1]) moved to `target`, one of TARGETS."""
    goal = TARGETS[target]
    gains = _gain(saturation, goal.saturation), _gain(value, goal.value)
    return recolour(image, goal.hue - hue, hue=hue, saturation=gains[0], value=gains[1])
