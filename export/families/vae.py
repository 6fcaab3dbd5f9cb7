"""The halves of the autoencoder: AutoencoderKL, or AutoencoderTiny in its place. Names are optimum's."""

from __future__ import annotations

import numpy as np

from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec

from ..sources import Config
from ..wrappers import vae_decoder, vae_encoder
from .base import Network, Sample, Seen
from .images import pictures, shape_label

SIZES = ((136, 192), (128, 128))  # of pictures; the first gives latents of 17 x 24, which no UNet halves evenly


def vae_encoder_spec(config: Config) -> GraphSpec:
    """Pictures to the distribution of their latents; to the latents themselves with AutoencoderTiny."""
    factor, channels = pixels_per_latent(config), config["latent_channels"]
    size = ("batch", f"height/{factor}", f"width/{factor}")
    tiny = config["_class_name"] == "AutoencoderTiny"
    name, channels = ("latent_sample", channels) if tiny else ("latent_parameters", 2 * channels)
    return GraphSpec(
        "vae_encoder",
        (TensorSpec("sample", "float32", ("batch", 3, "height", "width")),),
        (TensorSpec(name, "float32", (size[0], channels, *size[1:])),),
    )


def vae_encoder_samples(config: Config, seen: Seen) -> list[Sample]:
    """Pictures of two sizes."""
    samples = []
    for i, (height, width) in enumerate(SIZES):
        sample = pictures(2, height, width, seed=i)
        samples.append(Sample(shape_label(sample), {"sample": sample}))
    single = samples[-1].feeds["sample"][:1]
    return [*samples, Sample(shape_label(single), {"sample": single})]


def vae_decoder_spec(config: Config) -> GraphSpec:
    """Latents to pictures."""
    factor = pixels_per_latent(config)
    return GraphSpec(
        "vae_decoder",
        (TensorSpec("latent_sample", "float32", ("batch", config["latent_channels"], "height", "width")),),
        (TensorSpec("sample", "float32", ("batch", 3, f"{factor}*height", f"{factor}*width")),),
    )


def vae_decoder_samples(config: Config, seen: Seen) -> list[Sample]:
    """The latents of the pictures that the encoder was given."""
    return [Sample(shape_label(z), {"latent_sample": z}) for z in latents(seen)]


def latents(seen: Seen) -> list[Array]:
    """What the encoder gave for each of its samples, (batch, channels, height, width), unscaled."""
    found = []
    for outputs in seen["vae_encoder"]:
        if (parameters := outputs.get("latent_parameters")) is None:
            found.append(outputs["latent_sample"])
        else:
            found.append(np.ascontiguousarray(np.split(parameters, 2, axis=1)[0]))  # the mean
    return found


def pixels_per_latent(config: Config) -> int:
    """Each block but one halves the size."""
    key = "encoder_block_out_channels" if config["_class_name"] == "AutoencoderTiny" else "block_out_channels"
    return 1 << len(config[key]) - 1


_OLD_ATTENTION = tuple(
    (rf"(mid_block\.attentions\.0)\.{old}\.", rf"\1.{new}.")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
)

VAE = {
    "vae_encoder": Network(
        module=vae_encoder,
        spec=vae_encoder_spec,
        samples=vae_encoder_samples,
        folders=("vae_encoder", "vae"),
        batch=1,
        pixels=True,
        renames=_OLD_ATTENTION,
        skip=(r"decoder\.", r"post_quant_conv\."),
    ),
    "vae_decoder": Network(
        module=vae_decoder,
        spec=vae_decoder_spec,
        samples=vae_decoder_samples,
        folders=("vae_decoder", "vae"),
        batch=1,
        renames=_OLD_ATTENTION,
        skip=(r"encoder\.", r"quant_conv\."),
    ),
}
