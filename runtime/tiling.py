"""The VAE on a large picture, tile by tile, with seams that are blended."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .arrays import F32

TILE = 64  # latents: 512 pixels, what diffusers takes for Stable Diffusion


def in_tiles(network: Callable[[F32], F32], source: F32, tile: int, source_step: int, result_step: int) -> F32:
    """What `network` makes of `source` (1, channels, height, width), put together from equal tiles of it.

    A tile is `tile` latents wide and high, a latent `source_step` wide in the source and `result_step` in the result.
    Neighbours share a quarter of a tile or more, over which one fades into the other linearly. A network that looks at
    the whole, as a VAE's norms and attention do, gives each tile colours of its own: the smaller, the more so.
    """
    height, width = (size // source_step for size in source.shape[2:])
    rows, columns = starts(height, tile), starts(width, tile)
    results = []
    for y in rows:
        parts = [
            network(source[:, :, _window(y, tile, height, source_step), _window(x, tile, width, source_step)])
            for x in columns
        ]
        results.append(_blend(parts, columns, width, result_step, overlap=tile // 4, axis=3))
    return _blend(results, rows, height, result_step, overlap=tile // 4, axis=2)


def starts(size: int, tile: int) -> list[int]:
    """Where the tiles of a side begin, evenly spread; one at 0 where it is no longer than a tile."""
    if size <= tile:
        return [0]
    count = math.ceil((size - tile) / (tile - tile // 4)) + 1
    return [round(k * (size - tile) / (count - 1)) for k in range(count)]


def _window(start: int, tile: int, size: int, step: int) -> slice:
    return slice(start * step, min(start + tile, size) * step)


def _blend(parts: list[F32], starts: list[int], size: int, step: int, *, overlap: int, axis: int) -> F32:
    """Put `parts` beside one another along `axis`, each fading out over `overlap` towards its neighbours."""
    if len(parts) == 1:
        return parts[0]
    shape = list(parts[0].shape)
    length, shape[axis] = shape[axis], size * step
    total, weights = np.zeros(shape, np.float32), np.zeros(size * step, np.float32)
    along = [-1 if k == axis else 1 for k in range(len(shape))]
    for k, (part, start) in enumerate(zip(parts, starts, strict=True)):
        fade = _fade(length, overlap * step, first=k == 0, last=k == len(parts) - 1)
        window = slice(start * step, start * step + length)
        np.moveaxis(total, axis, 0)[window] += np.moveaxis(part * fade.reshape(along), axis, 0)
        weights[window] += fade
    return total / weights.reshape(along)


def _fade(length: int, overlap: int, *, first: bool, last: bool) -> F32:
    """1 in the middle and 0 at the ends, where a network sees the end of a picture that is none; (length,)."""
    margin = overlap // 4
    centres = np.arange(length) + 0.5
    from_ends = [np.full(length, np.inf) if first else centres, np.full(length, np.inf) if last else length - centres]
    fade: F32 = np.clip((np.minimum(*from_ends) - margin) / (overlap - 2 * margin), 0, 1).astype(np.float32)
    return fade
