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


def test_guidance_rescale(ours: Pipeline, theirs: Any) -> None:
    told: Any = {"prompt": "a red apple", "negative_prompt": "blue"}
    pictures = [
        np.asarray(ours(seed=0, noise="torch-cpu", guidance_rescale=rescale, **told, **SETTINGS)[0].image)
        for rescale in (0.7, 0.0)
    ]
    expected = reference(theirs, guidance_rescale=0.7, **told)
    assert psnr(pictures[0], expected) >= MIN_PSNR
    assert psnr(pictures[1], expected) < MIN_PSNR
