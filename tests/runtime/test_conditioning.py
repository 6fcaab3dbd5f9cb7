from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.fake import FakeEngine
from edgediffusion.engines.spec import GraphSpec, TensorSpec
from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.conditioning import INPUTS, REMEMBERED
from edgediffusion.runtime.prompts import TextEmbeds, TextEncoder, encode_prompts

from .conftest import Opened

RUN: Any = SimpleNamespace(width=1024, height=768, guidance_scale=3.0)
TEXT = TextEmbeds(np.zeros((2, 77, 8), np.float32), np.ones((2, 4), np.float32))


def fill(name: str, size: int) -> Any:
    return INPUTS[name](RUN, TEXT, TensorSpec(name, "float32", ("batch", size)))


def test_time_ids_of_sdxl_are_size_corner_and_size() -> None:
    assert fill("time_ids", 6).tolist() == [[[768, 1024, 0, 0, 768, 1024]]] * 2


def test_time_ids_of_the_refiner_end_with_an_aesthetic_score() -> None:
    assert fill("time_ids", 5)[:, 0].tolist() == [[768, 1024, 0, 0, 2.5], [768, 1024, 0, 0, 6]]


def test_the_guidance_scale_as_sines_and_cosines() -> None:
    (negative,), (positive,) = fill("timestep_cond", 5)
    np.testing.assert_array_equal(negative, positive)
    # 1000 * (3 - 1) at the frequencies 1 and 1/10000, and one place left over
    np.testing.assert_allclose(positive, [np.sin(2000), np.sin(0.2), np.cos(2000), np.cos(0.2), 0], rtol=1e-6)


def test_two_text_encoders_side_by_side() -> None:
    def encoder(name: str, width: int, layers: int, pooled: int | None) -> FakeEngine:
        states = [TensorSpec(f"hidden_states.{i}", "float32", ("batch", 2, width)) for i in range(layers + 1)]
        outputs = states if pooled is None else [TensorSpec("text_embeds", "float32", ("batch", pooled)), *states]
        spec = GraphSpec(name, (TensorSpec("input_ids", "int64", ("batch", 2)),), tuple(outputs))

        def run(feeds: Any) -> Any:
            batch = len(feeds["input_ids"])
            shape = {"text_embeds": (batch, pooled)}
            numbers = {"text_embeds": -1} | {f"hidden_states.{i}": i for i in range(layers + 1)}
            return {o.name: np.full(shape.get(o.name, (batch, 2, width)), numbers[o.name], np.float32) for o in outputs}

        return FakeEngine(spec, run)

    tokenizer: Any = SimpleNamespace(encode=lambda text: [], frame=lambda ids: [0, 1], room=0, comma=None)
    encoders = [TextEncoder(tokenizer, e, -2) for e in (encoder("one", 3, 12, None), encoder("two", 4, 32, 5))]
    text = encode_prompts([[[[("a", 1)]]] * 2] * 2, encoders, 1)
    assert text.hidden_states.shape == (2, 2, 7)
    np.testing.assert_array_equal(text.hidden_states[1, 1], [11] * 3 + [31] * 4)
    np.testing.assert_array_equal(text.pooled, np.full((2, 5), -1))


def test_texts_are_encoded_once(bundle_path: Path, opened: Opened) -> None:
    with Pipeline.load(bundle_path) as pipeline:

        def encoded(prompt: str = "a red apple", **settings: Any) -> int:
            opened.calls.clear()
            pipeline(prompt, num_inference_steps=1, **settings)
            return sum(name == "text_encoder" for name, _ in opened.calls)

        assert encoded() == 1
        assert encoded(negative_prompt="blue") == 1
        assert encoded(seed=1, guidance_scale=3) == 0
        assert [encoded(str(k)) for k in range(REMEMBERED - 1)] == [1] * (REMEMBERED - 1)
        assert encoded() == 0
        assert encoded(negative_prompt="blue") == 1  # so many others were asked for since
        assert len(pipeline.encoded) == REMEMBERED


@pytest.mark.parametrize("name", ["prompt_2", "negative_prompt_2"])
def test_a_second_prompt_needs_a_second_text_encoder(bundle_path: Path, opened: Opened, name: str) -> None:
    settings: Any = {name: "a car"}
    with (
        Pipeline.load(bundle_path) as pipeline,
        pytest.raises(UsageError, match=f"{name}: this model has one text encoder"),
    ):
        pipeline.steps("a red apple", **settings)
