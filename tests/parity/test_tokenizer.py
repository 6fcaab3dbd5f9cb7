"""Token ids against transformers' CLIPTokenizer, for every form in which a tokenizer is found on disk."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from edgediffusion.runtime.tokenizer import ClipTokenizer, PromptTruncated

CAPTIONS = [
    "a photograph of an astronaut riding a horse on the moon, 4k, highly detailed",
    "the cat's face and the dog's ears; they'll run, we've 3 of 12",
    "ein Äpfelchen, naïve café — “quotes”, 東京タワー, красное яблоко",
    "smiling 😀 face with 👨‍👩‍👧 family, 🇩🇪 flag!!!",
] * 20


def train(folder: Path) -> None:
    """vocab.json and merges.txt of a small BPE in CLIP's manner: bytes, bytes at a word's end, merges, two marks."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    words = Regex(r"'s|'ll|'ve|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(vocab_size=500, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(sign + "</w>" for sign in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def write_json(path: Path, record: object) -> None:
    path.write_text(json.dumps(record), encoding="utf-8")


def plain(folder: Path) -> None:
    """Nothing but vocabulary and merges, and the length."""
    write_json(folder / "tokenizer_config.json", {"model_max_length": 77})


def mark(content: str) -> dict[str, object]:
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def transformers_4(folder: Path) -> None:
    """As Stable Diffusion 1.5 has it."""
    marks = {
        "bos_token": mark("<|startoftext|>"),
        "eos_token": mark("<|endoftext|>"),
        "unk_token": mark("<|endoftext|>"),
    }
    typed = {name: {"__type": "AddedToken", **token} for name, token in marks.items()}
    write_json(folder / "special_tokens_map.json", {**marks, "pad_token": "<|endoftext|>"})
    write_json(
        folder / "tokenizer_config.json",
        {**typed, "pad_token": "<|endoftext|>", "model_max_length": 77, "do_lower_case": True, "errors": "replace"},
    )


def stable_diffusion_2(folder: Path) -> None:
    """The two files disagree on the padding, and the older one counts."""
    transformers_4(folder)
    path = folder / "special_tokens_map.json"
    write_json(path, json.loads(path.read_text()) | {"pad_token": "!"})


def added_tokens_decoder(folder: Path) -> None:
    """As later versions of transformers 4 write it: here tokenizer_config.json counts."""
    stable_diffusion_2(folder)
    path = folder / "tokenizer_config.json"
    vocab = json.loads((folder / "vocab.json").read_text())
    tokens = {vocab[token]: mark(token) | {"special": True} for token in ("<|startoftext|>", "<|endoftext|>")}
    write_json(path, json.loads(path.read_text()) | {"added_tokens_decoder": tokens})


def transformers_5(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json, as the installed transformers writes them."""
    plain(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    for path in folder.iterdir():
        path.unlink()
    tokenizer.save_pretrained(folder)
    assert (folder / "tokenizer.json").exists()
    assert not (folder / "vocab.json").exists()


def truncating(folder: Path) -> None:
    """A tokenizer.json that truncates and pads by itself."""
    transformers_5(folder)
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_truncation(9)
    tokenizer.enable_padding(length=12)
    tokenizer.save(path)


FORMS: list[Callable[[Path], None]] = [
    plain,
    transformers_4,
    stable_diffusion_2,
    added_tokens_decoder,
    transformers_5,
    truncating,
]
Both = tuple[ClipTokenizer, CLIPTokenizer]


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: form.__name__)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    folder = tmp_path_factory.mktemp("form") / "tokenizer"
    train(folder)
    request.param(folder)
    return ClipTokenizer(folder), CLIPTokenizer.from_pretrained(folder)


def assert_same(both: Both, text: str) -> None:
    ours, theirs = both
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncated)
        ids = ours([text])
    expected = theirs(text, padding="max_length", max_length=77, truncation=True).input_ids
    assert ids.tolist() == [expected], repr(text)


@given(text=st.text(max_size=120))
@example("")
@example("   ")
@example("a " * 75)
@example("a " * 76)
@example("x" * 400)
@example("A RED Apple\n\tand\u00a0a\u3000car\u200b!")
@example("<|startoftext|>a cat<|endoftext|>dog <|ENDOFTEXT|>")
@example("it's they'll I'VE 'tis 1234 a1b2")
@example("e\u0301 \u1e9b\u0323 \ufb01 İstanbul ΑΣ ß")
@example("👨‍👩‍👧 🇩🇪 ❤️\u200d🔥 \ud7ff\ue000\U0010ffff\x00\x7f")
def test_any_text(both: Both, text: str) -> None:
    assert_same(both, text)


@given(words=st.lists(st.sampled_from(" ".join(CAPTIONS[:4]).split()), max_size=90), joint=st.sampled_from([" ", ""]))
def test_words_of_the_training(both: Both, words: list[str], joint: str) -> None:
    assert_same(both, joint.join(words))


def test_signs_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    """They become the unknown token."""
    train(tmp_path / "tokenizer")
    plain(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "vocab.json"
    vocab = json.loads(path.read_text())
    kept = [token for token in vocab if token not in ("z", "z</w>", "😀")]
    write_json(path, {token: i for i, token in enumerate(kept)})
    both = ClipTokenizer(path.parent), CLIPTokenizer.from_pretrained(path.parent)
    for text in ("z", "a zebra", "😀 zzz"):
        assert_same(both, text)
