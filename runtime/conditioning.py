"""What the UNet is given beside noisy latents and timestep: a table from its inputs to what fills them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edgediffusion.engines.spec import GraphSpec, TensorSpec

from .arrays import F32
from .guidance import Guidance
from .prompt_syntax import at_step, parse, switches
from .prompts import Parts, TextEmbeds, TextEncoder, Texts, count_chunks, encode_prompts

if TYPE_CHECKING:
    from .run import Run

REMEMBERED = 8  # texts of pictures; of SDXL 1.3 MB each, for 77 tokens
AESTHETIC_SCORES = (2.5, 6.0)  # of the negative prompt and of the prompt, as diffusers has them


def condition(run: Run, text: TextEmbeds, unet: GraphSpec, guidance: Guidance) -> dict[str, F32]:
    """Those inputs of `unet` that stay the same while `text` does, (branches * num_images, ...) each."""
    pairs = {spec.name: INPUTS[spec.name](run, text, spec) for spec in unet.inputs if spec.name in INPUTS}
    return {name: guidance.texts(pair[0], pair[1], run.num_images) for name, pair in pairs.items()}


def encode_texts(run: Run) -> dict[int, TextEmbeds]:
    """What is attended to from a step on, by that step: one entry, unless words come and go.

    The arrays are (2, 1 or num_images, ...): of the negative prompts and of the prompts.
    """
    with run.pipeline.bundle.using(*run.pipeline.tokenizers):
        return {step: _encode(run, step) for step in prompt_steps(run)}


def prompt_steps(run: Run) -> list[int]:
    """The steps at which other words come in, in order, 0 the first.

    Raises:
        UsageError: see `prompt_syntax.parse`.
    """
    prompts = {text for texts in run.texts for text in texts if text is not None}
    steps = {step for text in prompts for step in switches(parse(text, run.num_inference_steps))}
    return sorted(int(step) for step in steps if 0 <= step < run.num_inference_steps)


def chunks_at(run: Run, step: int) -> int:
    """How many chunks of 77 tokens the longest prompt has in this step."""
    counts = [_count_chunks(run, texts, step) for texts in run.texts]
    given: list[int] = [embeds.shape[1] // run.pipeline.max_tokens for embeds in run.given_embeds.values()]
    return max(counts + given)


def lengths(run: Run) -> list[tuple[int, ...]]:
    """For each of the run's `texts` the chunks that it has alone, in each of its `prompt_steps`."""
    steps = prompt_steps(run)
    return [tuple(_count_chunks(run, texts, step) for step in steps) for texts in run.texts]


def _count_chunks(run: Run, texts: Texts, step: int) -> int:
    return count_chunks(_pairs(run, texts, step), list(run.pipeline.tokenizers.values()))


def _encode(run: Run, step: int) -> TextEmbeds:
    encoders = functools.cache(functools.partial(run.pipeline.text_encoders, run.clip_skip))
    count = chunks_at(run, step)
    embeds = {texts: _remembered(run, texts, step, count, encoders) for texts in dict.fromkeys(run.texts)}
    rows = [embeds[texts] for texts in run.texts]
    hidden_states = np.stack([row.hidden_states for row in rows], axis=1)
    pooled = [row.pooled for row in rows if row.pooled is not None]
    return TextEmbeds(
        _with_given(run, hidden_states, "prompt_embeds"),
        _with_given(run, np.stack(pooled, axis=1), "pooled_prompt_embeds") if pooled else None,
    )


def _remembered(run: Run, texts: Texts, step: int, count: int, encoders: Callable[[], list[TextEncoder]]) -> TextEmbeds:
    """Those of one picture, encoded unless they are among the last ones."""
    pipeline, pairs = run.pipeline, _pairs(run, texts, step)
    negative = texts.negative_prompt or (len(pairs) > 1 and texts.negative_prompt_2)
    zeros = pipeline.force_zeros_for_empty_prompt and not negative
    known, key = pipeline.encoded, repr((pairs, count, run.clip_skip, zeros))
    if key not in known:
        encoded = encode_prompts(pairs, encoders(), count)
        if zeros:
            encoded.hidden_states[0] = 0
            if encoded.pooled is not None:
                encoded.pooled[0] = 0
        known[key] = encoded
    known.move_to_end(key)
    if len(known) > REMEMBERED:
        known.popitem(last=False)
    return known[key]


def _with_given(run: Run, encoded: F32, name: str) -> F32:
    """(2, 1 or num_images, ...), where one of the two, or both, may be arrays that the run was told."""
    given = [getattr(run, "negative_" + name), getattr(run, name)]
    if all(told is None for told in given):
        return encoded
    rows = [own if told is None else told.astype(np.float32) for own, told in zip(encoded, given, strict=True)]
    return np.stack(np.broadcast_arrays(*rows))


def _pairs(run: Run, texts: Texts, step: int) -> list[tuple[Parts, Parts]]:
    """For each text encoder what the negative prompt and the prompt are in this step."""
    pairs = (
        (texts.negative_prompt, texts.prompt),
        (texts.negative_prompt_2 or texts.negative_prompt, texts.prompt_2 or texts.prompt),
    )
    negative_and_prompt = [
        tuple(at_step(parse(text, run.num_inference_steps), step) for text in pair)
        for pair in pairs[: len(run.pipeline.tokenizers)]
    ]
    return [(negative, prompt) for negative, prompt in negative_and_prompt]


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
        return np.array([[(*size, *corner, score)] for score in AESTHETIC_SCORES], np.float32)
    return np.array([[(*size, *corner, *size)]] * 2, np.float32)


def _guidance_embedding(run: Run, text: TextEmbeds, spec: TensorSpec) -> F32:
    """guidance_scale - 1 as sines and cosines, to a UNet that was distilled with guidance (arXiv:2310.04378, 4.2)."""
    size = spec.shape[-1]
    assert isinstance(size, int)
    half = size // 2
    frequencies = np.exp(-np.log(10000) / (half - 1) * np.arange(half))
    angles = 1000 * (run.guidance_scale - 1) * frequencies
    embedding = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(size % 2)])
    return np.stack([embedding, embedding])[:, None].astype(np.float32)


# Input -> maker of (2, 1 or num_images, ...): for the negative prompts and for the prompts.
INPUTS: dict[str, Callable[[Run, TextEmbeds, TensorSpec], F32]] = {
    "encoder_hidden_states": _hidden_states,
    "text_embeds": _pooled,
    "time_ids": _time_ids,
    "timestep_cond": _guidance_embedding,
}
