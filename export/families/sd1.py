"""Stable Diffusion 1.x. Names of inputs and outputs are optimum's."""

from __future__ import annotations

import numpy as np

from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec

from ..sources import Config
from ..wrappers import ImageEncoder, TextEncoder, VaeDecoder, VaeEncoder, unet
from .base import Network, Sample, Seen

LATENTS = ("batch", 4, "height", "width")
SIZES = ((136, 192), (128, 128))  # of pictures; the first gives latents of 17 x 24, which no UNet halves evenly
TIMESTEPS = (999, 801, 601, 401, 201, 1)


def text_encoder_spec(config: Config) -> GraphSpec:
    """Token ids to a vector for each token, and one for the prompt."""
    width = config["hidden_size"]
    return GraphSpec(
        "text_encoder",
        (TensorSpec("input_ids", "int64", ("batch", config["max_position_embeddings"])),),
        (
            TensorSpec("last_hidden_state", "float32", ("batch", config["max_position_embeddings"], width)),
            TensorSpec("pooler_output", "float32", ("batch", width)),
        ),
    )


def text_encoder_samples(config: Config, seen: Seen) -> list[Sample]:
    """Prompts of many lengths. As in every CLIP vocabulary the last two tokens mark the start and the end."""
    length, start, end = config["max_position_embeddings"], config["vocab_size"] - 2, config["vocab_size"] - 1
    rng = np.random.default_rng(0)

    def prompt(words: int) -> list[int]:
        return [start, *rng.integers(start, size=words).tolist(), *[end] * (length - 1 - words)]

    batches = ((5, length - 2), (0,), (12, 1))
    return [
        Sample(
            f"prompts of {' and '.join(map(str, words))} tokens", {"input_ids": np.array([prompt(n) for n in words])}
        )
        for words in batches
    ]


def unet_spec(config: Config) -> GraphSpec:
    """Noisy latents, timestep and prompt to the predicted noise."""
    context = TensorSpec("encoder_hidden_states", "float32", ("batch", 77, config["cross_attention_dim"]))
    return GraphSpec(
        "unet",
        (TensorSpec("sample", "float32", LATENTS), TensorSpec("timestep", "float32", (1,)), context),
        (TensorSpec("out_sample", "float32", LATENTS),),
    )


def unet_samples(config: Config, seen: Seen) -> list[Sample]:
    """Latents of pictures with the noise of each timestep (DDPM, arXiv:2006.11239 eq. 4), prompts as context."""
    rng = np.random.default_rng(0)
    alphas_cumprod = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    samples = []
    for i, timestep in enumerate(TIMESTEPS):
        batch = (2, 1)[i // 2 % 2]
        latents = 0.18215 * seen["vae_encoder"][i % 2]["latent_parameters"][:batch, :4]
        alpha = alphas_cumprod[timestep]
        noisy = alpha**0.5 * latents + (1 - alpha) ** 0.5 * rng.standard_normal(latents.shape)
        feeds = {
            "sample": noisy.astype(np.float32),
            "timestep": np.array([timestep], np.float32),
            "encoder_hidden_states": seen["text_encoder"][0]["last_hidden_state"][:batch],
        }
        samples.append(Sample(f"timestep {timestep}, {shape_label(noisy)}", feeds))
    return samples


def vae_encoder_spec(config: Config) -> GraphSpec:
    """Pictures to the distribution of their latents."""
    return GraphSpec(
        "vae_encoder",
        (TensorSpec("sample", "float32", ("batch", 3, "height", "width")),),
        (TensorSpec("latent_parameters", "float32", ("batch", 8, "height/8", "width/8")),),
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
    return GraphSpec(
        "vae_decoder",
        (TensorSpec("latent_sample", "float32", LATENTS),),
        (TensorSpec("sample", "float32", ("batch", 3, "8*height", "8*width")),),
    )


def vae_decoder_samples(config: Config, seen: Seen) -> list[Sample]:
    """The latents of the pictures that the encoder was given."""
    latents = [outputs["latent_parameters"][:, :4] for outputs in seen["vae_encoder"]]
    return [Sample(shape_label(z), {"latent_sample": np.ascontiguousarray(z)}) for z in latents]


def image_encoder_spec(config: Config) -> GraphSpec:
    """Pictures to points in the space of prompts."""
    size = config["image_size"]
    return GraphSpec(
        "image_encoder",
        (TensorSpec("pixel_values", "float32", ("batch", 3, size, size)),),
        (TensorSpec("image_embeds", "float32", ("batch", config["projection_dim"])),),
    )


def image_encoder_samples(config: Config, seen: Seen) -> list[Sample]:
    """Pictures in about the range that the mean and deviation of the preprocessor give."""
    size = config["image_size"]
    return [Sample(f"batch {n}", {"pixel_values": 2 * pictures(n, size, size, seed=n)}) for n in (2, 1)]


def pictures(batch: int, height: int, width: int, *, seed: int) -> Array:
    """(batch, 3, height, width) float32 in [-1, 1]: smooth colours with a few sharp edges."""
    rng = np.random.default_rng(seed)
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    image = np.zeros((batch, 3, height, width))
    for fy, fx in rng.uniform(-4, 4, (6, 2)):
        phase = rng.uniform(0, 2 * np.pi, (batch, 3, 1, 1))
        image += np.sin(2 * np.pi * (fy * y + fx * x) + phase)
    image[..., height // 4 : height // 2, width // 3 : width // 2] *= -1
    result: Array = (image / np.abs(image).max()).astype(np.float32)
    return result


def shape_label(array: Array) -> str:
    """Words for the batch and the size of (batch, channels, height, width)."""
    batch, _, height, width = array.shape
    return f"batch {batch}, {height}x{width}"


_OLD_ATTENTION = tuple(
    (rf"(mid_block\.attentions\.0)\.{old}\.", rf"\1.{new}.")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
)
_POSITION_IDS = r".*\.position_ids$"  # a buffer that transformers before 4.31 saved

SD1 = {
    "text_encoder": Network(
        module=TextEncoder,
        spec=text_encoder_spec,
        samples=text_encoder_samples,
        folders=("text_encoder",),
        renames=((r"^(?!text_model\.)", "text_model."),),
        skip=(_POSITION_IDS,),
    ),
    "vae_encoder": Network(
        module=VaeEncoder,
        spec=vae_encoder_spec,
        samples=vae_encoder_samples,
        folders=("vae_encoder", "vae"),
        renames=_OLD_ATTENTION,
        skip=(r"decoder\.", r"post_quant_conv\."),
    ),
    "vae_decoder": Network(
        module=VaeDecoder,
        spec=vae_decoder_spec,
        samples=vae_decoder_samples,
        folders=("vae_decoder", "vae"),
        renames=_OLD_ATTENTION,
        skip=(r"encoder\.", r"quant_conv\."),
    ),
    "unet": Network(module=unet, spec=unet_spec, samples=unet_samples, folders=("unet",)),
    "image_encoder": Network(
        module=ImageEncoder,
        spec=image_encoder_spec,
        samples=image_encoder_samples,
        folders=("image_encoder",),
        skip=(_POSITION_IDS,),
    ),
}
