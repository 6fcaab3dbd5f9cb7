"""What the UNet attends to, by other ways than a short prompt: layers left out, and prompts of several chunks."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from edgediffusion.export.reference import load_pipeline
from edgediffusion.export.to_onnx import quiet
from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.pipeline import BUILTIN

from .test_pictures import MIN_PSNR, psnr

SETTINGS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 5.0}


@pytest.fixture(scope="module")
def ours() -> Iterator[Pipeline]:
    with Pipeline.load(device="cpu") as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def theirs() -> Any:
    pipeline = load_pipeline(BUILTIN)
    norm = pipeline.text_encoder.final_layer_norm
    pipeline.text_encoder.text_model = SimpleNamespace(final_layer_norm=norm)  # where diffusers 0.42 looks for it
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def reference(theirs: Any, seed: int = 0, **told: Any) -> Any:
    with quiet():
        (picture,) = theirs(generator=torch.Generator("cpu").manual_seed(seed), **SETTINGS, **told).images
    return np.asarray(picture)


def test_clip_skip(ours: Pipeline, theirs: Any) -> None:
    pictures = []
    for skip in (1, 2):
        (picture,) = ours("a red apple", "blue", seed=0, noise="torch-cpu", clip_skip=skip, **SETTINGS)
        pictures.append(np.asarray(picture.image))
        told: Any = {"prompt": "a red apple", "negative_prompt": "blue", "clip_skip": skip}
        assert psnr(pictures[-1], reference(theirs, **told)) >= MIN_PSNR
    assert psnr(*pictures) < MIN_PSNR


def test_a_prompt_of_two_chunks(ours: Pipeline, theirs: Any) -> None:
    """Each chunk is encoded by torch as a prompt of its own, weighed in float64, and put side by side."""
    long = "noto a red apple noto, " * 18 + "(a leaf:1.4) on top"
    (picture,) = ours(long, "blue", seed=0, noise="torch-cpu", **SETTINGS)
    words = [*["noto a red apple noto, "] * 18, "a leaf", " on top"]
    tokens = [(token, 1.4 if k == 18 else 1.0) for k, text in enumerate(words) for token in tokens_of(theirs, text)]
    last_comma = max(k for k, (token, _) in enumerate(tokens[:75]) if token == tokens_of(theirs, ",")[0])
    assert last_comma >= 55
    chunks = (tokens[: last_comma + 1], tokens[last_comma + 1 :])
    embeds = torch.cat([encoded(theirs, *zip(*chunk, strict=True)) for chunk in chunks], dim=1)
    negative = torch.cat([encoded(theirs, tokens_of(theirs, text)) for text in ("blue", "")], dim=1)
    expected = reference(theirs, prompt_embeds=embeds, negative_prompt_embeds=negative)
    assert psnr(np.asarray(picture.image), expected) >= MIN_PSNR
    (short,) = ours("a red apple, noto", "blue", seed=0, noise="torch-cpu", **SETTINGS)
    assert psnr(np.asarray(short.image), expected) < MIN_PSNR


def tokens_of(theirs: Any, text: str) -> list[int]:
    return list(theirs.tokenizer(text, add_special_tokens=False).input_ids)


def encoded(theirs: Any, ids: Any, weights: Any = None) -> torch.Tensor:
    """(1, 77, width) of a chunk, each token as far from the empty prompt as it weighs."""
    tokenizer = theirs.tokenizer
    rows = [[tokenizer.bos_token_id, *words, tokenizer.eos_token_id] for words in (ids, ())]
    factors = torch.ones(77, dtype=torch.float64)
    if weights is not None:
        factors[1 : 1 + len(ids)] = torch.tensor(weights, dtype=torch.float64)
    padded = [row + [tokenizer.pad_token_id] * (77 - len(row)) for row in rows]
    with torch.no_grad():
        states, empty = theirs.text_encoder(torch.tensor(padded))[0].double()
    weighed: torch.Tensor = (empty + factors[:, None] * (states - empty)).float()[None]
    return weighed


@pytest.fixture(scope="module")
def xl(checkpoints: Any, bundles: Any) -> Iterator[tuple[Pipeline, Any]]:
    theirs = load_pipeline(checkpoints("sdxl"))
    theirs.set_progress_bar_config(disable=True)
    with Pipeline.load(bundles("sdxl"), device="cpu") as pipeline:
        yield pipeline, theirs


def test_clip_skip_of_sdxl(xl: tuple[Pipeline, Any]) -> None:
    """Of the prompts of both text encoders."""
    ours, theirs = xl
    told: Any = {"prompt_2": "a car", "clip_skip": 1}
    (picture,) = ours("a red apple", "blue", seed=0, noise="torch-cpu", **told, **SETTINGS)
    expected = reference(theirs, prompt="a red apple", negative_prompt="blue", **told)
    assert psnr(np.asarray(picture.image), expected) >= MIN_PSNR
    assert psnr(np.asarray(picture.image), reference(theirs, prompt="a red apple", prompt_2="a car")) < MIN_PSNR


def test_a_prompt_of_two_chunks_for_sdxl(xl: tuple[Pipeline, Any]) -> None:
    """Each text encoder sees its own prompt, a chunk at a time; the pooled vector is that of the first chunk."""
    ours, theirs = xl
    first, second = "apple " * 17, "a car"  # of 5 tokens each; 85 + 0, and 4
    (picture,) = ours(first, "blue", prompt_2=second, seed=0, noise="torch-cpu", **SETTINGS)
    tokens = theirs.tokenizer(first, add_special_tokens=False).input_ids
    assert 75 < len(tokens) <= 150
    embeds, pooled = xl_embeds(theirs, [tokens[:75], tokens[75:]], [tokens_of(theirs, second), []])
    negative, negative_pooled = xl_embeds(theirs, *[[tokens_of(theirs, "blue"), []]] * 2)
    given: dict[str, Any] = {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
    given |= {"negative_prompt_embeds": negative, "negative_pooled_prompt_embeds": negative_pooled}
    expected = reference(theirs, **given)
    assert psnr(np.asarray(picture.image), expected) >= MIN_PSNR
    (short,) = ours(first[:60], "blue", prompt_2=second, seed=0, noise="torch-cpu", **SETTINGS)
    assert psnr(np.asarray(short.image), expected) < MIN_PSNR


def xl_embeds(theirs: Any, *chunks: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Last but one hidden states (1, 77 * chunks, width) of both text encoders, and the second's pooled vector."""
    sides = []
    for encoder, tokenizer, own in zip(
        (theirs.text_encoder, theirs.text_encoder_2), (theirs.tokenizer, theirs.tokenizer_2), chunks, strict=True
    ):
        rows = [[tokenizer.bos_token_id, *words, tokenizer.eos_token_id] for words in own]
        padded = [row + [tokenizer.pad_token_id] * (77 - len(row)) for row in rows]
        with torch.no_grad():
            outputs = [encoder(torch.tensor([row]), output_hidden_states=True) for row in padded]
        sides.append(torch.cat([output.hidden_states[-2] for output in outputs], dim=1))
        pooled = outputs[0][0]
    return torch.cat(sides, dim=-1), pooled


def test_guidance_rescale(ours: Pipeline, theirs: Any) -> None:
    told: Any = {"prompt": "a red apple", "negative_prompt": "blue"}
    pictures = [
        np.asarray(ours(seed=0, noise="torch-cpu", guidance_rescale=rescale, **told, **SETTINGS)[0].image)
        for rescale in (0.7, 0.0)
    ]
    expected = reference(theirs, guidance_rescale=0.7, **told)
    assert psnr(pictures[0], expected) >= MIN_PSNR
    assert psnr(pictures[1], expected) < MIN_PSNR
