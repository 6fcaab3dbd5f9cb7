"""What the UNet is given beside noisy latents and timestep: a table from its inputs to what fills them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edgediffusion.engines.spec import GraphSpec, TensorSpec

from .arrays import F32
from .guidance import Guidance
from .prompts import TextEmbeds, encode_prompts

if TYPE_CHECKING:
    from .run import Run

AESTHETIC_SCORES = (2.5, 6.0)  # of the negative prompt and of the prompt, as diffusers has them


def condition(run: Run, unet: GraphSpec, guidance: Guidance) -> dict[str, F32]:
    """Those inputs of `unet` that are the same in every step, (branches * num_images, ...) each.

    Warns:
        PromptTruncated: a prompt has more tokens than the text encoder reads.
    """
    text = _encode(run)
    pairs = {spec.name: INPUTS[spec.name](run, text, spec) for spec in unet.inputs if spec.name in INPUTS}
    return {name: guidance.texts(pair[0], pair[1], run.num_images) for name, pair in pairs.items()}


def _encode(run: Run) -> TextEmbeds:
    """Of the negative prompt and of the prompt."""
    family, bundle = run.pipeline.bundle.family, run.pipeline.bundle
    tokenizers = run.pipeline.tokenizers
    second = (run.negative_prompt_2 or run.negative_prompt, run.prompt_2 or run.prompt)
    prompts = [(run.negative_prompt, run.prompt), second][: len(tokenizers)]
    encoders = [bundle.engine(name) for name in tokenizers]
    text = encode_prompts(prompts, list(tokenizers.values()), encoders, family.text_layer)
    if run.pipeline.force_zeros_for_empty_prompt and not any(negative for negative, _ in prompts):
        text.hidden_states[0] = 0
        if text.pooled is not None:
            text.pooled[0] = 0
    return text


def _hidden_states(run: Run, text: TextEmbeds, spec: TensorSpec) -> F32:
    return text.hidden_states


def _pooled(run: Run, text: TextEmbeds, spec: TensorSpec) -> F32:
    assert text.pooled is not None
    return text.pooled


def _time_ids(run: Run, text: TextEmbeds, spec: TensorSpec) -> F32:
    """SDXL's micro-conditioning (arXiv:2307.01952, section 2.2): a picture of this size, not cropped.

    Six numbers, of which the last two are the size again, or five, of which the last is an aesthetic score.
    """
    size, corner = (run.height, run.width), (0, 0)
    if spec.shape[-1] == 5:
        return np.array([(*size, *corner, score) for score in AESTHETIC_SCORES], np.float32)
    return np.array([(*size, *corner, *size)] * 2, np.float32)


def _guidance_embedding(run: Run, text: TextEmbeds, spec: TensorSpec) -> F32:
    """guidance_scale - 1 as sines and cosines, to a UNet that was distilled with guidance (arXiv:2310.04378, 4.2)."""
    size = spec.shape[-1]
    assert isinstance(size, int)
    half = size // 2
    frequencies = np.exp(-np.log(10000) / (half - 1) * np.arange(half))
    angles = 1000 * (run.guidance_scale - 1) * frequencies
    embedding = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(size % 2)])
    return np.stack([embedding, embedding]).astype(np.float32)


# Input -> maker of two rows: for the negative prompt and for the prompt.
INPUTS: dict[str, Callable[[Run, TextEmbeds, TensorSpec], F32]] = {
    "encoder_hidden_states": _hidden_states,
    "text_embeds": _pooled,
    "time_ids": _time_ids,
    "timestep_cond": _guidance_embedding,
}
