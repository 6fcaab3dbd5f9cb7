"""From words to what the UNet attends to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgediffusion.engines.base import Engine
from edgediffusion.engines.spec import Array

from .arrays import F32
from .tokenizer import ClipTokenizer


@dataclass(frozen=True, eq=False)
class TextEmbeds:
    """`hidden_states` (prompts, 77, width), and `pooled` (prompts, width) where a text encoder gives it."""

    hidden_states: F32
    pooled: F32 | None = None


def encode_prompts(
    prompts: Sequence[Sequence[str]], tokenizers: Sequence[ClipTokenizer], encoders: Sequence[Engine], layer: int | None
) -> TextEmbeds:
    """What each text encoder makes of its own list of `prompts`, side by side, as SDXL has them (arXiv:2307.01952).

    `layer` is an index into the hidden states, -2 the last but one; None is the last, with its final norm.

    Warns:
        PromptTruncated: a prompt is longer than the text encoder reads.
    """
    outputs = [
        encoder({"input_ids": tokenizer(texts)})
        for texts, tokenizer, encoder in zip(prompts, tokenizers, encoders, strict=True)
    ]
    hidden_states = np.concatenate([_hidden_state(output, layer) for output in outputs], axis=-1)
    pooled = next((output["text_embeds"] for output in outputs if "text_embeds" in output), None)
    return TextEmbeds(hidden_states, pooled)


def _hidden_state(output: Mapping[str, Array], layer: int | None) -> F32:
    if layer is None:
        return output["last_hidden_state"]
    count = sum(name.startswith("hidden_states.") for name in output)
    return output[f"hidden_states.{count + layer}"]
