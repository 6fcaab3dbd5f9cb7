from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgediffusion.engines.errors import BundleError
from edgediffusion.runtime.tokenizer import ClipTokenizer, PromptTruncated


@pytest.fixture
def folder(tmp_path: Path, clip_tokenizer: Tokenizer) -> Path:
    clip_tokenizer.model.save(str(tmp_path))
    return tmp_path


def test_begin_end_and_padding(folder: Path) -> None:
    ids = ClipTokenizer(folder)(["a red apple", ""])
    assert (ids.shape, ids.dtype.name) == ((2, 77), "int64")
    begin, end = 0, 1
    assert ids[0, 0] == begin
    assert list(ids[1]) == [begin] + [end] * 76
    words = ids[0][1 : list(ids[0]).index(end)]
    vocab = json.loads((folder / "vocab.json").read_text())
    assert list(words) == [vocab["a</w>"], vocab["red</w>"], vocab["apple</w>"]]


def test_tokenizer_json_counts_first(folder: Path, clip_tokenizer: Tokenizer) -> None:
    expected = ClipTokenizer(folder)(["A red apple, a car"])
    tokenizer = Tokenizer.from_str(clip_tokenizer.to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").unlink()
    np.testing.assert_array_equal(ClipTokenizer(folder)(["A red apple, a car"]), expected)


def test_a_shorter_model(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 16}')
    assert ClipTokenizer(folder)(["a"]).shape == (1, 16)


def test_as_many_tokens_as_fit(folder: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids = ClipTokenizer(folder)(["a " * 75])
    assert not caught
    assert list(ids[0][[0, 75, 76]]) == [0, ids[0][1], 1]


@pytest.mark.parametrize(
    ("prompt", "tokens", "cut"),
    [
        ("a " * 76, 76, "a"),
        ("a " * 75 + "Red\n  APPLE, É 😀", 84, "Red APPLE, É 😀"),
        ("é😀 " * 20 + "a", 121, "😀 é😀 é😀 é😀 é😀 é😀 é😀 é😀 a"),
    ],
)
def test_what_is_cut_is_told_in_the_prompts_own_words(folder: Path, prompt: str, tokens: int, cut: str) -> None:
    with pytest.warns(PromptTruncated) as caught:
        ids = ClipTokenizer(folder)([prompt])
    assert [str(w.message) for w in caught] == [f"prompt has {tokens} tokens, 75 are read; cut: {cut!r}"]
    assert ids[0, 76] == 1


def test_no_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(
        BundleError, match=f"{tmp_path}: neither tokenizer.json nor vocab.json and merges.txt; export th"
    ):
        ClipTokenizer(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "{", "no tokenizer that can be read .*EOF while parsing"),
        ("tokenizer.json", '{"model": {"type": "WordLevel", "vocab": {}, "unk_token": "a"}}', "no BPE, or none that"),
        (
            "tokenizer.json",
            '{"model": {"type": "BPE", "vocab": {}, "merges": [], "unk_token": "a"}}',
            "none that has it",
        ),
        ("vocab.json", '{"a": 0}', "no tokenizer that can be read .*out of (vocabulary|range)"),
        ("vocab.json", "[]", "no tokenizer that can be read .*got list, wanted a JSON object"),
        ("tokenizer_config.json", '{"pad_token": 3}', "no tokenizer that can be read"),
        ("tokenizer_config.json", '{"model_max_length": 2}', "model_max_length 2, wanted 3 or more"),
        ("tokenizer_config.json", '{"model_max_length": -Infinity}', "no tokenizer that can be read .*OverflowError"),
    ],
)
def test_files_that_make_no_tokenizer(folder: Path, file: str, content: str, message: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(BundleError, match=f"{folder}: .*{message}.*; export the bundle again"):
        ClipTokenizer(folder)


@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_a_special_token_that_is_in_no_vocabulary(folder: Path, clip_tokenizer: Tokenizer, form: str) -> None:
    if form == "tokenizer.json":
        clip_tokenizer.save(str(folder / form))
    (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "[PAD]"}}')
    with pytest.raises(
        BundleError, match=rf"{folder}: pad_token '\[PAD\]' is not in the vocabulary; export the bundle"
    ):
        ClipTokenizer(folder)
