"""The projection of latents to colours that previews are made with, fitted to a bundle's own VAE. Needs no torch.

    python -m edgediffusion.export.latent_rgb BUNDLE

does for a bundle that has none what an export does: the numbers go into its manifest, nothing else changes.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgediffusion.engines.base import Engine
from edgediffusion.engines.errors import BundleError, EdgeDiffusionError
from edgediffusion.engines.files import replacing
from edgediffusion.runtime.arrays import F32, F64
from edgediffusion.runtime.bundle import Bundle
from edgediffusion.runtime.foreign import is_foreign
from edgediffusion.runtime.latents import LatentSpace
from edgediffusion.runtime.manifest import MANIFEST, LatentRGB

SIDE = 16  # of the latents of a picture, where the graphs leave it free
LATENTS = 2048  # that the numbers are fitted to, or more


def add_latent_rgb(path: Path) -> float:
    """Fit the projection of the bundle in the folder `path`, on the CPU, and write it into its manifest; its R squared.

    Raises:
        BundleError: there is no bundle, or another tool wrote it, or its VAE cannot be run on the CPU.
    """
    if is_foreign(path):
        raise BundleError(f"{path}: written with another tool, it has no manifest; export it with edgediffusion")
    with Bundle.open(path, device="cpu") as bundle:
        space = LatentSpace.from_configs(bundle.config("unet/config.json"), bundle.config("vae_decoder/config.json"))
        fitted = fit(bundle.engine("vae_encoder"), bundle.engine("vae_decoder"), space)
        manifest = dataclasses.replace(bundle.manifest, latent_rgb=fitted)
    with replacing(path / MANIFEST) as partial:
        partial.write_text(manifest.to_json(), encoding="utf-8")
    return fitted.r2


def fit(encoder: Engine, decoder: Engine, space: LatentSpace) -> LatentRGB:
    """Least squares over pictures that the VAE has encoded and decoded again; a latent has the mean of its pixels."""
    (encoder_input,), (decoder_input,) = encoder.spec.inputs, decoder.spec.inputs
    height, width = (
        size if isinstance(size, int) else SIDE * space.pixels_per_latent for size in encoder_input.shape[2:]
    )
    step = space.pixels_per_latent
    count = -(-LATENTS * step**2 // (height * width))
    rng = np.random.default_rng(0)
    latents, colours = [], []
    for _ in range(count):
        ((name, encoded),) = encoder({encoder_input.name: natural_picture(height, width, rng)}).items()
        mean = encoded if name == "latent_sample" else np.split(encoded, 2, axis=1)[0]
        sample = decoder({decoder_input.name: mean})["sample"]
        blocks = sample.clip(-1, 1).reshape(1, 3, height // step, step, width // step, step)
        latents.append(_rows(space.for_unet(mean)))
        colours.append(_rows(blocks.mean(axis=(3, 5))))
    known, wanted = np.concatenate(latents), np.concatenate(colours)
    known = np.column_stack([known, np.ones(len(known))])
    solution = np.linalg.lstsq(known, wanted, rcond=None)[0]
    left = np.square(wanted - known @ solution).sum() / np.square(wanted - wanted.mean(axis=0)).sum()
    *weights, bias = (tuple(row) for row in solution.round(5).tolist())
    return LatentRGB(weights=tuple(weights), bias=bias, r2=round(1 - float(left), 4))


def natural_picture(height: int, width: int, rng: np.random.Generator) -> F32:
    """(1, 3, height, width) in [-1, 1] with the statistics of photographs, as far as they are of second order.

    The amplitude falls with the frequency (Field, J. Opt. Soc. Am. A 4, 1987: p. 2379), and the channels go together.
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1 / max(height, width)
    white = np.fft.rfft2(rng.standard_normal((3, height, width)))
    waves = np.fft.irfft2(white / frequency, s=(height, width))
    waves = waves / waves.std(axis=(1, 2), keepdims=True) + rng.standard_normal((3, 1, 1))
    grey = waves.mean(axis=0)
    picture: F32 = (grey + (waves - grey) / 2).clip(-1, 1).astype(np.float32)
    return picture[None]


def _rows(planes: F32) -> F64:
    """(1, channels, height, width) -> (height * width, channels)"""
    rows: F64 = planes[0].reshape(planes.shape[1], -1).T.astype(np.float64)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """The command above; what goes wrong is one line and status 2."""
    parser = argparse.ArgumentParser(prog="python -m edgediffusion.export.latent_rgb", description=__doc__)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="its folder")
    path = parser.parse_args(arguments).bundle
    try:
        r2 = add_latent_rgb(path)
    except EdgeDiffusionError as error:
        sys.stderr.write(f"edgediffusion: error: {error}\n")
        return 2
    sys.stdout.write(f"{path}: {said(r2)}\n")
    return 0


def said(r2: float) -> str:
    """For whoever exports."""
    return f"previews: a linear projection of the latents explains {r2:.0%} of the variance of their colours"


if __name__ == "__main__":
    sys.exit(main())
