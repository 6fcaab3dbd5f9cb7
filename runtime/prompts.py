"""From words to what the UNet attends to: any number of chunks of 77 tokens, each seen by the text encoder alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgediffusion.engines.base import Engine
from edgediffusion.engines.spec import Array

from .arrays import F32
from .tokenizer import ClipTokenizer

COMMA_BACKTRACK = 20  # as the web UI has it: words behind a comma as near to a chunk's end go to the next one whole
Parts = Sequence[Sequence[tuple[str, float]]]  # of a prompt, between BREAKs: texts and their weights


@dataclass(frozen=True, eq=False)
class TextEmbeds:
    """`hidden_states` (prompts, 77 * chunks, width), and `pooled` (prompts, width) where a text encoder gives it."""

    hidden_states: F32
    pooled: F32 | None = None


@dataclass(frozen=True, eq=False)
class Chunks:
    """A tokenized prompt: `ids` (chunks, 77) int64, and the weight of each token (chunks, 77) float32."""

    ids: NDArray[np.int64]
    weights: F32


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A text encoder, its tokenizer, and the hidden states that the UNet reads.

    `layer` is an index into them, -2 the last but one; None is the last, with its final norm. `skip` more layers are
    left out for all prompts but the first, which is the negative one, as in diffusers; `norm` is scale and shift of
    the final norm, for them to have it as well.
    """

    tokenizer: ClipTokenizer
    engine: Engine
    layer: int | None = None
    skip: int = 0
    norm: tuple[F32, F32] | None = None

    def __call__(self, prompts: Sequence[Chunks]) -> TextEmbeds:
        """Of prompts with as many chunks. The vector for a whole prompt is that of its first chunk."""
        ids, weights = (np.stack(arrays, axis=1) for arrays in zip(*((p.ids, p.weights) for p in prompts), strict=True))
        outputs = [self.engine({"input_ids": chunk}) for chunk in ids]
        states = [self._state(output) for output in outputs]
        if (weights != 1).any():
            nothing = np.array([self.tokenizer.frame([])] * len(prompts), np.int64)
            empty = self._state(self.engine({"input_ids": nothing}))
            states = [weigh(state, w, empty) for state, w in zip(states, weights, strict=True)]
        return TextEmbeds(np.concatenate(states, axis=1), outputs[0].get("text_embeds"))

    def _state(self, output: Mapping[str, Array]) -> F32:
        count = sum(name.startswith("hidden_states.") for name in output)
        last = count - 1 if self.layer is None else count + self.layer
        state: F32 = output["last_hidden_state" if self.layer is None else f"hidden_states.{last}"]
        if not self.skip:
            return state
        earlier: F32 = output[f"hidden_states.{last - self.skip}"][1:]
        return np.concatenate([state[:1], earlier if self.norm is None else layer_norm(earlier, *self.norm)])


EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


class Texts(NamedTuple):
    """The words of one picture; the second ones are what SDXL's second text encoder reads."""

    prompt: str
    negative_prompt: str
    prompt_2: str | None
    negative_prompt_2: str | None


def count_chunks(prompts: Sequence[Sequence[Parts]], tokenizers: Sequence[ClipTokenizer]) -> int:
    """How many chunks the longest of each text encoder's `prompts` has."""
    return max(
        len(split(parts, tokenizer)) for own, tokenizer in zip(prompts, tokenizers, strict=True) for parts in own
    )


def encode_prompts(prompts: Sequence[Sequence[Parts]], encoders: Sequence[TextEncoder], num_chunks: int) -> TextEmbeds:
    """What each text encoder makes of its own list of `prompts`, side by side, as SDXL has them (arXiv:2307.01952).

    All are made `num_chunks` long by empty chunks.
    """
    embeds = [
        encoder([framed(split(parts, encoder.tokenizer), encoder.tokenizer, num_chunks) for parts in own])
        for own, encoder in zip(prompts, encoders, strict=True)
    ]
    hidden_states = np.concatenate([e.hidden_states for e in embeds], axis=-1)
    return TextEmbeds(hidden_states, next((e.pooled for e in embeds if e.pooled is not None), None))


def split(parts: Parts, tokenizer: ClipTokenizer) -> list[list[tuple[int, float]]]:
    """Chunks of at most 75 tokens and their weights, one at least."""
    chunks: list[list[tuple[int, float]]] = []
    for part in parts:
        chunks.append([])
        for text, weight in part:
            for token in tokenizer.encode(text):
                if len(chunks[-1]) == tokenizer.room:
                    kept = tokenizer.room if token == tokenizer.comma else _after_comma(chunks[-1], tokenizer.comma)
                    chunks[-1], rest = chunks[-1][:kept], chunks[-1][kept:]
                    chunks.append(rest)
                chunks[-1].append((token, weight))
    return chunks


def _after_comma(chunk: Sequence[tuple[int, float]], comma: int | None) -> int:
    """The place behind the last comma of a full chunk, if it is near the end; else the end."""
    near = range(len(chunk), max(0, len(chunk) - COMMA_BACKTRACK), -1)
    return next((place for place in near if chunk[place - 1][0] == comma), len(chunk))


def framed(chunks: Sequence[Sequence[tuple[int, float]]], tokenizer: ClipTokenizer, count: int) -> Chunks:
    """With begin, end and padding, which weigh 1; `count` chunks, the last ones empty."""
    ids = np.array([tokenizer.frame([])] * count, np.int64)
    weights = np.ones(ids.shape, np.float32)
    for i, chunk in enumerate(chunks):
        ids[i] = tokenizer.frame([token for token, _ in chunk])
        weights[i, 1 : 1 + len(chunk)] = [weight for _, weight in chunk]
    return Chunks(ids, weights)


def weigh(hidden_states: F32, weights: F32, empty: F32) -> F32:
    """Hidden states (prompts, 77, width), as far from those of an `empty` prompt as their weights say.

    empty + weight * (state - empty), for each token: ComfyUI's definition. That of AUTOMATIC1111, the state times the
    weight with the mean restored, divides by a mean that can be next to 0: that of the built-in text encoder is 0.0004
    for a standard deviation of 0.86.
    """
    factors = weights[..., None]
    return np.where(factors == 1, hidden_states, empty + factors * (hidden_states - empty))


def layer_norm(states: F32, scale: F32, shift: F32) -> F32:
    """Over the last axis, as CLIP has it (epsilon 1e-5): Ba et al., arXiv:1607.06450 eq. 4."""
    centred = states - states.mean(axis=-1, keepdims=True)
    normal: F32 = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return normal * scale + shift
