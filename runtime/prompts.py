"""From words to what the UNet attends to."""

from __future__ import annotations

from collections.abc import Sequence

from edgediffusion.engines.base import Engine

from .arrays import F32
from .tokenizer import ClipTokenizer


def encode_prompts(prompts: Sequence[str], tokenizer: ClipTokenizer, text_encoder: Engine) -> F32:
    """The text encoder's last hidden state of each prompt, (prompts, 77, width).

    Warns:
        PromptTruncated: a prompt is longer than the text encoder reads.
    """
    embeds: F32 = text_encoder({"input_ids": tokenizer(prompts)})["last_hidden_state"]
    return embeds
