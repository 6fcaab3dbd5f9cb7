"""Textual inversion (arXiv:2208.01618): words of their own for a text encoder, a row of its token embedding each.

Two layouts are read: diffusers' `{word: (vectors, width)}`, and that of A1111 and its kin, where the file's name is the
word: `emb_params`, `*` where it was pickled, or `clip_l` and `clip_g` for the two encoders of SDXL. A word of several
vectors is the tokens `word`, `word_1`, `word_2` and so on, as in diffusers; the runtime's tokenizer puts them all where
a prompt has it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgediffusion.engines.errors import ExportError

from ..weights import TORCH_DTYPES, Derived, StoredTensor, read_header
from .base import Config, EditedPart, Part, Source, parse_json, pickled
from .folder import PICKLES

TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
NAMED_BY_FILE = {
    "emb_params": tuple(TOKENIZERS),
    "*": tuple(TOKENIZERS),
    "clip_l": ("text_encoder",),
    "clip_g": ("text_encoder_2",),
}
_ROWS = "embeddings.token_embedding.weight"


@dataclass(frozen=True)
class Extended(Derived):
    """`weight` (tokens, width) with the rows of `added` (vectors, width), or (width,), behind it."""

    added: StoredTensor

    @property
    def file(self) -> Path:
        """That of what is added."""
        return self.added.file

    @property
    def shape(self) -> tuple[int, ...]:
        """With the rows."""
        return self.weight.shape[0] + _vectors(self.added), self.weight.shape[1]

    def read(self) -> torch.Tensor:
        """The rows are rounded to the type of `weight`."""
        rows = self.added.read().reshape(-1, self.shape[1]).to(TORCH_DTYPES[self.dtype])
        return torch.cat([self.weight.read(), rows])


def add_embeddings(source: Source, files: Sequence[Path]) -> Source:
    """`source` with the words of each file in its tokenizers and text encoders.

    Raises:
        ExportError: a file holds something else, fits no text encoder, or has a word that is taken.
    """
    for path in files:
        if path.suffix in PICKLES:
            raise pickled(path)
        for key, tensor in read_header(path).items():
            word = path.stem if key in NAMED_BY_FILE else key
            folders = NAMED_BY_FILE.get(key, tuple(TOKENIZERS))
            fits = [name for name in folders if name in source.parts and _fits(source.parts[name], tensor)]
            if not fits:
                widths = {name: part.config["hidden_size"] for name, part in source.parts.items() if name in folders}
                raise ExportError(f"{path}: {key} has shape {tensor.shape}, the text encoders have widths {widths}")
            for name in fits:
                source = _add(source, name, word, tensor)
    return source


def _vectors(tensor: StoredTensor) -> int:
    return tensor.shape[0] if len(tensor.shape) == 2 else 1


def _fits(part: Part, tensor: StoredTensor) -> bool:
    return len(tensor.shape) in (1, 2) and tensor.shape[-1] == part.config["hidden_size"]


def _add(source: Source, name: str, word: str, tensor: StoredTensor) -> Source:
    part, folder = source.parts[name], TOKENIZERS[name]
    key = next(key for key in part.weights if key.endswith(_ROWS))
    weight = part.weights[key]
    words = [word, *(f"{word}_{i}" for i in range(1, _vectors(tensor)))]
    settings = _with_tokens(source.folder(folder), {w: weight.shape[0] + i for i, w in enumerate(words)}, tensor.file)
    extended = Extended(weight, tensor)
    edited = EditedPart(
        part.where,
        part.config | {"vocab_size": extended.shape[0]},
        {**part.weights, key: extended},
        (*part.files, tensor.file),
    )
    return replace(
        source,
        parts={**source.parts, name: edited},
        settings={**source.settings, **{f"{folder}/{file}": content for file, content in settings.items()}},
    )


def _with_tokens(files: dict[str, bytes], tokens: dict[str, int], path: Path) -> dict[str, bytes]:
    """The tokenizer in `files` with more tokens, in each of the places where it may list them."""

    def edit(name: str) -> Config:
        return parse_json(files.get(name, b"{}"), name)

    added, config, fast = edit("added_tokens.json"), edit("tokenizer_config.json"), edit("tokenizer.json")
    vocabulary = edit("vocab.json") | fast.get("model", {}).get("vocab", {}) | added
    for token, number in tokens.items():
        if token in vocabulary or number in added.values():
            raise ExportError(f"{path}: {token!r} is a token already; rename the file, or leave it out")
        flags = {"content": token, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
        if "added_tokens_decoder" in config:
            config["added_tokens_decoder"][str(number)] = flags | {"single_word": False}
        if fast:
            fast.setdefault("added_tokens", []).append(flags | {"id": number, "single_word": False})
    written = {"added_tokens.json": added | tokens, "tokenizer_config.json": config}
    if fast:
        written["tokenizer.json"] = fast
    return {name: json.dumps(content, ensure_ascii=False).encode() for name, content in written.items()}
