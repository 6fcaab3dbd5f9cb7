"""ControlNet (arXiv:2302.05543): a picture to what a UNet adds to the outputs of its blocks."""

from __future__ import annotations

from functools import partial

import numpy as np

from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec
from edgediffusion.runtime.families import CONTROLNET_FOLDERS

from ..sources import Config
from ..wrappers import controlnet, unet
from .base import Network, Sample, Seen, Variant
from .images import pictures
from .unet import unet_samples, unet_spec


def controlnet_spec(config: Config, *, name: str, time_ids: int) -> GraphSpec:
    """What the UNet is told, a picture of [0, 1] and the scale of its say, to a residual for each block."""
    shared = unet_spec(_as_unet(config), time_ids=time_ids).inputs
    picture = TensorSpec("controlnet_cond", "float32", ("batch", 3, "8*height", "8*width"))
    scale = TensorSpec("conditioning_scale", "float32", (1,))
    return GraphSpec(name, (*shared[:3], picture, scale, *shared[3:]), residuals(config, "res_sample"))


def residuals(config: Config, word: str) -> tuple[TensorSpec, ...]:
    """One for what enters the first block, and for each layer and each halving of the size; one for the middle."""
    widths, layers = config["block_out_channels"], config["layers_per_block"]
    places = [(widths[0], 0)]
    for level, width in enumerate(widths):
        places += [(width, level)] * (layers if isinstance(layers, int) else layers[level])
        places += [(width, level + 1)] if level + 1 < len(widths) else []
    names = [f"down_block_{word}_{i}" for i in range(len(places))] + [f"mid_block_{word}"]
    return tuple(
        TensorSpec(name, "float32", ("batch", width, _halved("height", level), _halved("width", level)))
        for name, (width, level) in zip(names, [*places, (widths[-1], len(widths) - 1)], strict=True)
    )


def controlnet_samples(config: Config, seen: Seen, *, time_ids: int) -> list[Sample]:
    """Those of a UNet, with the picture that its latents come from or another."""
    samples = []
    for i, sample in enumerate(unet_samples(_as_unet(config), seen, time_ids=time_ids)):
        batch, _, height, width = sample.feeds["sample"].shape
        added: dict[str, Array] = {
            "controlnet_cond": (pictures(batch, 8 * height, 8 * width, seed=i) + 1) / 2,
            "conditioning_scale": np.array([0.8], np.float32),
        }
        samples.append(Sample(sample.label, sample.feeds | added))
    return samples


def denoisers(*, time_ids: int = 6) -> dict[str, Network]:
    """The UNet of a family, see `unet_spec` for `time_ids`, after as many ControlNets as a bundle may have."""
    controlled = Variant(
        needs=CONTROLNET_FOLDERS[0],
        spec=partial(_controlled_spec, time_ids=time_ids),
        samples=partial(_controlled_samples, time_ids=time_ids),
    )
    networks = {
        name: Network(
            module=controlnet,
            spec=partial(controlnet_spec, name=name, time_ids=time_ids),
            samples=partial(controlnet_samples, time_ids=time_ids),
            folders=(name,),
        )
        for name in CONTROLNET_FOLDERS
    }
    networks["unet"] = Network(
        module=unet,
        spec=partial(unet_spec, time_ids=time_ids),
        samples=partial(unet_samples, time_ids=time_ids),
        folders=("unet",),
        variants={"controlnet": controlled},
    )
    return networks


def _controlled_spec(config: Config, *, time_ids: int) -> GraphSpec:
    plain = unet_spec(config, time_ids=time_ids)
    return GraphSpec(plain.name, (*plain.inputs, *residuals(config, "additional_residual")), plain.outputs)


def _controlled_samples(config: Config, seen: Seen, *, time_ids: int) -> list[Sample]:
    given = [
        {name.replace("res_sample", "additional_residual"): value for name, value in outputs.items()}
        for outputs in seen[CONTROLNET_FOLDERS[0]]
    ]
    plain = unet_samples(config, seen, time_ids=time_ids)
    return [Sample(s.label, s.feeds | added) for s, added in zip(plain, given, strict=True)]


def _as_unet(config: Config) -> Config:
    return config | {"out_channels": config["in_channels"]}


def _halved(size: str, level: int) -> str:
    """Rounded up, as the convolutions do it."""
    return size if level == 0 else f"{size}/{2**level}"
