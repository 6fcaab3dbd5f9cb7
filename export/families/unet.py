"""The denoiser. Its config says what it takes beside latents, timestep and text."""

from __future__ import annotations

import numpy as np

from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec

from ..sources import Config
from .base import Sample, Seen
from .images import shape_label
from .vae import latents

TIMESTEPS = (999, 801, 601, 401, 201, 1)
PLAIN = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds")  # what no known family sets


def unet_spec(config: Config, *, time_ids: int) -> GraphSpec:
    """Noisy latents, timestep and prompt to the predicted noise.

    `timestep_cond` embeds the guidance scale (LCM), `text_embeds` the prompt and `time_ids` sizes (SDXL). `time_ids` is
    how many sizes: the config knows only the sum of what it takes to embed them and the prompt.

    Raises:
        ValueError: the config asks for inputs of a kind that no family here has.
    """
    if unknown := [key for key in PLAIN if config.get(key) is not None]:
        raise ValueError(f"{unknown[0]} {config[unknown[0]]!r} is not supported")
    inputs = [
        TensorSpec("sample", "float32", ("batch", config["in_channels"], "height", "width")),
        TensorSpec("timestep", "float32", (1,)),
        TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence_length", config["cross_attention_dim"])),
    ]
    if (width := config.get("time_cond_proj_dim")) is not None:
        inputs.append(TensorSpec("timestep_cond", "float32", ("batch", width)))
    match config.get("addition_embed_type"):
        case "text_time":
            prompt = config["projection_class_embeddings_input_dim"] - time_ids * config["addition_time_embed_dim"]
            inputs.append(TensorSpec("text_embeds", "float32", ("batch", prompt)))
            inputs.append(TensorSpec("time_ids", "float32", ("batch", time_ids)))
        case None:
            pass
        case kind:
            raise ValueError(f"addition_embed_type {kind!r} is not supported")
    output = TensorSpec("out_sample", "float32", ("batch", config["out_channels"], "height", "width"))
    return GraphSpec("unet", tuple(inputs), (output,))


def unet_samples(config: Config, seen: Seen, *, time_ids: int) -> list[Sample]:
    """Latents of pictures with the noise of each timestep (DDPM, arXiv:2006.11239 eq. 4), prompts as context.

    Those are of one chunk or two.
    """
    rng = np.random.default_rng(0)
    alphas_cumprod = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    wanted = [tensor.name for tensor in unet_spec(config, time_ids=time_ids).inputs]
    samples = []
    for i, timestep in enumerate(TIMESTEPS):
        batch = (2, 1)[i // 2 % 2]
        clean = latents(seen)[i % 2][:batch]
        clean = clean / clean.std()  # which is what scaling_factor is for
        alpha = alphas_cumprod[timestep]
        noisy = alpha**0.5 * clean + (1 - alpha) ** 0.5 * rng.standard_normal(clean.shape)
        known = {name: value[:batch] for name, value in _conditions(config, seen, clean, time_ids).items()}
        known["sample"] = _with_extra_channels(noisy, clean, config["in_channels"])
        known["timestep"] = np.array([timestep])
        known["encoder_hidden_states"] = np.tile(known["encoder_hidden_states"], (1, 1 + i % 2, 1))
        samples.append(
            Sample(
                f"timestep {timestep}, {shape_label(noisy)}",
                {name: known[name].astype(np.float32) for name in wanted},
            )
        )
    return samples


def _conditions(config: Config, seen: Seen, clean: Array, time_ids: int) -> dict[str, Array]:
    """All that a UNet can be told beside sample and timestep, and more, for a batch of 2."""
    prompts = [seen[name][0] for name in ("text_encoder", "text_encoder_2") if name in seen]
    guidance = config.get("time_cond_proj_dim") or 0
    size = tuple(8 * n for n in clean.shape[2:])  # original, then the corner of the crop, then target or a score
    return prompts[-1] | {
        "encoder_hidden_states": np.concatenate([_context(outputs) for outputs in prompts], axis=-1),
        "timestep_cond": np.sin(np.arange(2 * guidance)).reshape(2, guidance),
        "time_ids": np.array([[*size, 0, 0, *(size if time_ids == 6 else (6.0,))]] * 2),
    }


def _context(outputs: dict[str, Array]) -> Array:
    """What the UNet attends to: SDXL's comes from the last layer but one."""
    layers = sum(name.startswith("hidden_states.") for name in outputs)
    return outputs[f"hidden_states.{layers - 2}" if layers else "last_hidden_state"]


def _with_extra_channels(noisy: Array, clean: Array, channels: int) -> Array:
    """Behind the noisy latents: a mask and latents of the masked picture (inpainting), or latents alone (pix2pix)."""
    mask = np.zeros_like(clean[:, :1])
    mask[..., ::2] = 1
    everything = np.concatenate([noisy, mask, clean * (1 - mask)], axis=1)
    extra = channels - noisy.shape[1]
    return np.concatenate([noisy, everything[:, everything.shape[1] - extra :]], axis=1)
