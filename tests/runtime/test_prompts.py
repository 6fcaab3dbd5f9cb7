"""The web UIs' prompt syntax, and what becomes of it: chunks, weights, and steps at which words change."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime import Parameters, Pipeline
from edgediffusion.runtime.prompt_syntax import Words, at_step, parse, switches
from edgediffusion.runtime.prompts import framed, layer_norm, split, weigh
from edgediffusion.runtime.tensors import read_tensors

from .conftest import WIDTH, Opened

STEPS = 10


@pytest.fixture
def pipeline(bundle_path: Path, opened: Opened) -> Pipeline:
    return Pipeline.load(bundle_path)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red apple", [("a red apple", 1)]),
        ("a (red) apple", [("a ", 1), ("red", 1.1), (" apple", 1)]),
        ("a (red:1.3) apple", [("a ", 1), ("red", 1.3), (" apple", 1)]),
        ("[red] apple", [("red", 1 / 1.1), (" apple", 1)]),
        ("((red) apple:2)", [("red", 2.2), (" apple", 2)]),
        ("(a (red:1.5) (car:0.5):2)", [("a ", 2), ("red", 3), (" ", 2), ("car", 1), ("", 2)]),
        ("([red])", [("red", 1)]),
        ("(red: 1.5 )", [("red", 1.5)]),
        ("(red:-1)", [("red", -1)]),
        ("(at 10:30 sharp)", [("at 10:30 sharp", 1.1)]),
        (r"\(red\) \[apple\] \\ \n", [("(red) [apple] \\ \\n", 1)]),
        (r"(a \(b\):1.2)", [("a (b)", 1.2)]),
        ("()", []),
        ("a: b|c", [("a: b|c", 1)]),
        ("red\\", [("red\\", 1)]),
        ("", []),
    ],
)
def test_weights(prompt: str, expected: list[tuple[str, float]]) -> None:
    found = parse(prompt, STEPS)
    assert [words.text for words in found] == [text for text, _ in expected]
    assert [words.weight for words in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("a [red:blue:0.4] car", {0: "a red car", 3: "a red car", 4: "a blue car", 9: "a blue car"}),
        ("a [red:blue:4] car", {3: "a red car", 4: "a blue car"}),
        ("a[ red:0.5]", {4: "a", 5: "a red"}),
        ("a[ red::0.5]", {4: "a red", 5: "a"}),
        ("[red:blue:1.0]", {9: "red"}),
        ("[red:blue:0]", {0: "blue"}),
        ("[a:[b:c:0.6]:0.2]", {1: "a", 2: "b", 5: "b", 6: "c"}),
        ("[[a:b:0.6]:c:0.2]", {1: "a", 2: "c", 6: "c"}),
    ],
)
def test_words_that_come_and_go(prompt: str, texts: dict[int, str]) -> None:
    for step, text in texts.items():
        ((part,),) = [at_step(parse(prompt, STEPS), step)]
        assert "".join(piece for piece, _ in part) == text


def test_the_steps_at_which_words_change() -> None:
    assert switches(parse("[a:b:0.4] (c:1.2) [d::7]", STEPS)) == {0, 4, 7}
    assert switches([Words("a", 1)]) == {0}


def test_break_begins_a_part_whatever_the_weight() -> None:
    assert at_step(parse("red BREAK blue", STEPS), 0) == [[("red", 1)], [("blue", 1)]]
    assert at_step(parse("red (blue BREAK car:1.5) BREAKFAST", STEPS), 0) == [
        [("red ", 1), ("blue", 1.5)],
        [("car", 1.5), (" BREAKFAST", 1)],
    ]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a (red apple", r"prompt 'a \(red apple': nothing closes the '\(' at 3; for the sign itself write \\\("),
        ("red) apple", r"prompt 'red\) apple': nothing opens the '\)' at 4; for the sign itself write \\\)"),
        ("a [red) car]", r"nothing opens the '\)' at 7"),
        ("[a (b", r"nothing closes the '\(' at 4"),
        (r"\(red)", r"nothing opens the '\)' at 6"),
        ("[cat|dog]", r"prompt '\[cat\|dog\]': words that alternate, \[a\|b\], are not supported; for the signs write"),
    ],
)
def test_brackets_that_cannot_be_read(pipeline: Pipeline, opened: Opened, prompt: str, message: str) -> None:
    for arguments in ((prompt,), ("", prompt)):
        with pytest.raises(UsageError, match=message) as caught:
            pipeline.steps(*arguments)
        assert "\n" not in str(caught.value)
    assert opened.calls == []


class Letters:
    """Every letter is a token, 5 to a chunk."""

    room, length, comma = 5, 7, ord(",")

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def frame(self, ids: Any) -> list[int]:
        return [1, *ids, 2, *[3] * (5 - len(ids))]


def texts(*parts: tuple[str, float]) -> list[str]:
    tokenizer: Any = Letters()
    return ["".join(chr(token) for token, _ in chunk) for chunk in split([list(parts)], tokenizer)]


def test_chunks() -> None:
    assert texts(("abcdefgh", 1)) == ["abcde", "fgh"]
    assert texts(("abcde", 1)) == ["abcde"]
    assert texts(("", 1)) == [""]
    assert texts(("ab", 1), ("cdefgh", 2)) == ["abcde", "fgh"]
    # What is behind a comma stays together; a comma itself stays where it is.
    assert texts(("ab,cdefghij", 1)) == ["ab,", "cdefg", "hij"]
    assert texts(("abcde,f", 1)) == ["abcde", ",f"]
    assert texts(("abcd,e", 1)) == ["abcd,", "e"]


def test_a_comma_that_is_too_far_away() -> None:
    tokenizer: Any = SimpleNamespace(room=30, comma=ord(","), encode=Letters().encode)
    (near, _), (far, _) = (
        [len(chunk) for chunk in split([[("x" * place + "," + "y" * 40, 1)]], tokenizer)][:2] for place in (10, 9)
    )
    assert (near, far) == (11, 30)


def test_begin_end_and_padding_weigh_one_and_empty_chunks_follow() -> None:
    tokenizer: Any = Letters()
    chunks = framed([[(7, 1.5), (8, 0.5)]], tokenizer, 2)
    assert chunks.ids.tolist() == [[1, 7, 8, 2, 3, 3, 3], [1, 2, 3, 3, 3, 3, 3]]
    assert chunks.weights.tolist() == [[1, 1.5, 0.5, 1, 1, 1, 1], [1] * 7]


def test_a_weight_is_a_distance_from_the_empty_prompt() -> None:
    """The definition in float64: empty + weight * (state - empty), for each token."""
    rng = np.random.default_rng(0)
    states, empty = (rng.normal(0.5, 1, shape).astype(np.float32) for shape in ((3, 77, 16), (77, 16)))
    weights = np.ones((3, 77), np.float32)
    weights[0, 5:9], weights[2, 1:4] = 1.3, -0.5
    reference = empty + weights.astype(np.float64)[:, :, None] * (states.astype(np.float64) - empty)
    weighed = weigh(states, weights, empty)
    assert weighed.dtype == np.float32
    np.testing.assert_allclose(weighed, reference, atol=1e-6)  # float32 rounds three times
    np.testing.assert_array_equal(weighed[weights == 1], states[weights == 1])
    # By hand: from 1, the states 2 and 3 go twice and half as far.
    by_hand = weigh(np.array([[[2], [3]]], np.float32), np.array([[2, 0.5]], np.float32), np.ones((2, 1), np.float32))
    assert by_hand.ravel().tolist() == [3, 2]


def test_the_final_norm() -> None:
    states = np.array([[1, 2, 3, 6]], np.float32)
    expected = (states - 3) / math.sqrt(3.5 + 1e-5) * [1, 2, 1, 1] + [0, 0, 0, 5]
    found = layer_norm(states, np.array([1, 2, 1, 1], np.float32), np.array([0, 0, 0, 5], np.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_weighed_words_in_the_unets_context(pipeline: Pipeline, opened: Opened) -> None:
    for prompt in ("a red apple", "a (red:1.5) apple", ""):
        pipeline(prompt, seed=0, num_inference_steps=1)
    (_, plain), (_, weighed), (_, empty) = contexts(opened)
    red = 2  # begin, a, red
    np.testing.assert_allclose(weighed[red], empty[red] + 1.5 * (plain[red] - empty[red]), atol=1e-6)
    np.testing.assert_array_equal(np.delete(weighed, red, 0), np.delete(plain, red, 0))


def contexts(opened: Opened) -> list[Any]:
    return [feeds["encoder_hidden_states"] for name, feeds in opened.calls if name == "unet"]


def test_a_long_prompt_is_encoded_in_chunks_and_the_negative_prompt_padded(pipeline: Pipeline, opened: Opened) -> None:
    pipeline("red " * 80, "blue", seed=0, num_inference_steps=1)
    encoded = [feeds["input_ids"] for name, feeds in opened.calls if name == "text_encoder"]
    assert [ids.shape for ids in encoded] == [(2, 77)] * 2
    (context,) = contexts(opened)
    assert context.shape == (2, 154, WIDTH)
    empty = pipeline.tokenizers["text_encoder"]([""])
    np.testing.assert_array_equal(encoded[1][0], empty[0])
    red = pipeline.tokenizers["text_encoder"](["red " * 5])
    np.testing.assert_array_equal(encoded[1][1], red[0])


def test_a_bundle_that_takes_77_tokens_refuses_more(pipeline: Pipeline, opened: Opened) -> None:
    graph: Any = pipeline.bundle.manifest.graphs["unet"]
    object.__setattr__(graph, "spec", graph.spec.fixed({"batch": 2, "height": 2, "width": 2, "sequence_length": 77}))
    with pytest.raises(UsageError, match="a prompt of 2 chunks of 75 tokens; this bundle takes 1; shorten it, or exp"):
        pipeline.steps("red BREAK apple")
    assert opened.calls == []


def test_a_prompt_for_each_picture(pipeline: Pipeline) -> None:
    prompts = ["a red apple", "a (blue:1.2) car"]
    together = pipeline(prompts, "rocket", seed=5, num_inference_steps=2)
    for k, (prompt, picture) in enumerate(zip(prompts, together, strict=True)):
        (alone,) = pipeline(prompt, "rocket", seed=5 + k, num_inference_steps=2)
        assert picture.parameters == alone.parameters
        np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(alone.image))
    with pytest.raises(UsageError, match="2 values of prompt; wanted one, or as many as num_images, 3"):
        pipeline.steps(prompts, num_images=3)
    with pytest.raises(UsageError, match="3 values of negative_prompt; wanted one, or as many as num_images, 2"):
        pipeline.steps(prompts, ["a", "b", "c"])


def test_words_change_on_the_way(pipeline: Pipeline, opened: Opened) -> None:
    pipeline("[red:blue:0.5] car", seed=0, num_inference_steps=4)
    changing = contexts(opened)
    opened.calls.clear()
    for prompt in ("red car", "blue car"):
        pipeline(prompt, seed=0, num_inference_steps=2)
    np.testing.assert_array_equal(changing, contexts(opened))


def test_a_step_of_two_calls_has_one_prompt(pipeline: Pipeline, opened: Opened) -> None:
    pipeline("[red:blue:2] car", seed=0, num_inference_steps=4, scheduler="heun")
    calls = contexts(opened)
    assert len(calls) == 7
    assert [bool((context == calls[0]).all()) for context in calls] == [True] * 4 + [False] * 3


def test_embeddings_in_place_of_prompts(pipeline: Pipeline, opened: Opened) -> None:
    (expected,) = pipeline("a red apple", "blue", seed=0, num_inference_steps=2)
    negative, positive = contexts(opened)[0][:, None]
    given: Any = {"seed": 0, "num_inference_steps": 2, "prompt_embeds": positive}
    for more in ({"negative_prompt": "blue"}, {"negative_prompt_embeds": negative}):
        (picture,) = pipeline(**given, **more)
        np.testing.assert_array_equal(np.asarray(picture.image), np.asarray(expected.image))
    assert len(pipeline(prompt_embeds=positive.repeat(2, 0), seed=0, num_inference_steps=1)) == 2
    for settings, message in (
        ({"prompt": "a car"}, "prompt and prompt_embeds; wanted one of them"),
        (
            {"prompt_embeds": positive[:, :70]},
            r"prompt_embeds of shape \(1, 70, 8\); wanted \(1 or num_images 1, 77, 8",
        ),
        ({"negative_prompt": "car BREAK car"}, r"prompt_embeds of shape \(1, 77, 8\); wanted .* 154, 8\)"),
        ({"pooled_prompt_embeds": positive}, "prompt_embeds, pooled_prompt_embeds; this model wants prompt_embeds, or"),
    ):
        with pytest.raises(UsageError, match=message):
            pipeline.steps(**given | settings)


def test_clip_skip_needs_hidden_states(pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match="clip_skip: the text_encoder of this bundle gives its last layer alone; exp"):
        pipeline.steps("a car", clip_skip=1)


def test_clip_skip_of_the_builtin_model() -> None:
    with Pipeline.load(device="cpu") as pipeline:
        graph = pipeline.bundle.manifest.graphs["text_encoder"]
        for skip in (4, -1):
            with pytest.raises(UsageError, match=f"clip_skip {skip}; wanted 0 to 2, the layers that text_encoder can"):
                pipeline.steps("a car", clip_skip=skip)
        # The last layer with its norm is what the graph itself gives.
        ids = pipeline.tokenizers["text_encoder"](["a red apple", ""])
        output = pipeline.bundle.engine("text_encoder")({"input_ids": ids})
        names = [f"text_model.final_layer_norm.{part}" for part in ("weight", "bias")]
        _, arrays = read_tensors(pipeline.bundle.path / graph.weights, names)
        normed = layer_norm(output["hidden_states.3"], *(arrays[name].astype(np.float32) for name in names))
        np.testing.assert_allclose(normed, output["last_hidden_state"], atol=1e-5)  # rounding of float32 alone
        pictures = [pipeline("a red apple", seed=0, num_inference_steps=2, clip_skip=n)[0] for n in (0, 1)]
        assert [picture.parameters.clip_skip for picture in pictures] == [None, 1]
        assert (np.asarray(pictures[0].image) != np.asarray(pictures[1].image)).any()


def test_clip_skip_as_the_web_ui_counts_it() -> None:
    (parameters,) = [Parameters.from_text("a car\nSteps: 5, Clip skip: 2")]
    assert parameters.clip_skip == 1
    assert "Clip skip: 2" in parameters.to_text()
    assert Parameters.from_text("a car\nSteps: 5, Clip skip: 1").clip_skip is None
