"""CLIP's tokenizer, from the files that transformers writes beside a text encoder."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgediffusion.engines.errors import BundleError, one_line
from edgediffusion.engines.json_object import parse_object
from edgediffusion.engines.packed import File

if TYPE_CHECKING:
    from tokenizers import AddedToken, Encoding, Tokenizer

Token = str | dict[str, Any]  # in the second form under "content", with flags beside it
MAX_LENGTH = 77  # the positions of CLIP's text encoder
_SPECIAL: dict[str, Token] = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word")
# Words, single digits, runs of other signs; English contractions by themselves.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class PromptTruncated(UserWarning):
    """A prompt had more tokens than the text encoder reads."""


class ClipTokenizer:
    """Prompts to the token ids that transformers' CLIPTokenizer gives: begin, up to 75 tokens, end, padding.

    `length` is how many ids a text encoder reads, 77; `comma` is the id of a comma by itself, None where there is none.
    """

    def __init__(self, folder: File) -> None:
        """Read `folder`: tokenizer.json, or else vocab.json and merges.txt; tokenizer_config.json and the like.

        Raises:
            BundleError: there is no vocabulary, it lacks a special token, or a file cannot be read.
        """
        try:
            config = _read_config(folder)
            special = {name: config.get(name) or default for name, default in _SPECIAL.items()}
            self._tokenizer = _load(folder) or _build(folder, special, config.get("added_tokens_decoder", {}))
            ids = {name: self._tokenizer.token_to_id(_content(token)) for name, token in special.items()}
            self.length = int(min(config.get("model_max_length", MAX_LENGTH), MAX_LENGTH))
        except BundleError:
            raise
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise BundleError(f"{folder}: no tokenizer that can be read ({error!r}); export the bundle again") from None
        for name, token_id in ids.items():
            if token_id is None:
                token = _content(special[name])
                raise BundleError(f"{folder}: {name} {token!r} is not in the vocabulary; export the bundle again")
        if self.room < 1:
            raise BundleError(f"{folder}: model_max_length {self.length}, wanted 3 or more; export the bundle again")
        self._several = _words_of_several(self._tokenizer)
        self._bos, self._eos, self._pad = (ids[name] or 0 for name in ("bos_token", "eos_token", "pad_token"))
        self.comma = self._tokenizer.token_to_id(",</w>")

    def __call__(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """Token ids, (prompts, 77).

        Warns:
            PromptTruncated: a prompt is too long; the message holds what was cut.
        """
        result = np.full((len(prompts), self.length), self._pad, np.int64)
        for row, prompt in zip(result, prompts, strict=True):
            text, encoding = self._encode(prompt)
            if len(encoding.ids) > self.room:
                cut = " ".join(text[encoding.offsets[self.room][0] :].split())
                message = f"prompt has {len(encoding.ids)} tokens, {self.room} are read; cut: {cut!r}"
                warnings.warn(message, PromptTruncated, stacklevel=2)
            row[:] = self.frame(encoding.ids[: self.room])
        return result

    @property
    def room(self) -> int:
        """How many tokens there are between begin and end, 75."""
        return self.length - 2

    def encode(self, text: str) -> list[int]:
        """The tokens of any number of words, without begin and end."""
        return list(self._encode(text)[1].ids)

    def frame(self, ids: Sequence[int]) -> list[int]:
        """Begin, up to 75 tokens, end, padding: 77 ids."""
        return [self._bos, *ids, self._eos, *[self._pad] * (self.room - len(ids))]

    def _encode(self, text: str) -> tuple[str, Encoding]:
        for word, tokens in self._several.items():
            text = text.replace(word, tokens)
        return text, self._tokenizer.encode(text, add_special_tokens=False)


def _words_of_several(tokenizer: Tokenizer) -> dict[str, str]:
    """A textual inversion of several vectors is the tokens `word`, `word_1`, ...; a prompt has the word only."""
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    several = {}
    for word in added:
        more = list(itertools.takewhile(added.__contains__, (f"{word}_{i}" for i in itertools.count(1))))
        if more:
            several[word] = " ".join([word, *more])
    return several


def _read_config(folder: File) -> dict[str, Any]:
    """As transformers merges them: special_tokens_map.json counts where the newer added_tokens_decoder is missing."""
    config = _read_json(folder / "tokenizer_config.json")
    return config if "added_tokens_decoder" in config else config | _read_json(folder / "special_tokens_map.json")


def _read_json(path: File) -> dict[str, Any]:
    return parse_object(path.read_bytes()) if path.exists() else {}


def _content(token: Token) -> str:
    return token if isinstance(token, str) else str(token["content"])


def _load(folder: File) -> Tokenizer | None:
    from tokenizers import Tokenizer, models

    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    with _as_value_errors():
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    bpe = tokenizer.model
    if not isinstance(bpe, models.BPE) or (bpe.unk_token is not None and bpe.token_to_id(bpe.unk_token) is None):
        raise ValueError("no BPE, or none that has its unk_token")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@contextmanager
def _as_value_errors() -> Iterator[None]:
    """Of what tokenizers raises: Exception itself, or Rust's panic, as for a merge that is longer than any token."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(one_line(error)) from None


def _build(folder: File, special: dict[str, Token], added: dict[str, Token]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.exists() and merges.exists()):
        raise BundleError(f"{folder}: neither tokenizer.json nor vocab.json and merges.txt; export the bundle again")
    lines = merges.read_text(encoding="utf-8").split("\n")
    after_version = (line.partition(" ") for line in lines[1:])
    pairs = [(left, right) for left, _, right in after_version if right]
    unknown = _content(special["unk_token"])
    with _as_value_errors():
        bpe = models.BPE(_read_json(vocab), pairs, unk_token=unknown, end_of_word_suffix="</w>")
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokens = {_content(token): token for token in (*special.values(), *added.values())}
    tokenizer.add_special_tokens(
        [_added_token(token) for content, token in tokens.items() if tokenizer.token_to_id(content) is not None]
    )
    return tokenizer


def _added_token(token: Token) -> AddedToken:
    from tokenizers import AddedToken

    flags = {} if isinstance(token, str) else {flag: token[flag] for flag in _FLAGS if flag in token}
    return AddedToken(_content(token), special=True, **flags)
