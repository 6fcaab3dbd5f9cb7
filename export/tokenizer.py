"""The tokenizer's folder in both of its forms: older tools read vocab.json and merges.txt, newer tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from edgediffusion.engines.errors import ExportError

from .sources import read_json

JSON, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def write_tokenizer(files: Mapping[str, bytes], target: Path) -> None:
    """Write the tokenizer of `files` (name -> content) to the new folder `target`, and add the form that is missing.

    Raises:
        ExportError: there is neither form, or a tokenizer.json that is not byte-pair encoding as CLIP's is.
    """
    target.mkdir()
    for name in (JSON, VOCAB, MERGES, *SETTINGS):
        if name in files:
            (target / name).write_bytes(files[name])
    if not (target / JSON).exists():
        if not ((target / VOCAB).exists() and (target / MERGES).exists()):
            raise ExportError(f"{target.name}: no tokenizer in the checkpoint ({JSON}, or {VOCAB} and {MERGES})")
        _write_json(target)
    elif not ((target / VOCAB).exists() and (target / MERGES).exists()):
        _write_vocabulary(target, read_json(target / JSON).get("model", {}))


def _write_json(folder: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder, use_fast=True).backend_tokenizer.save(str(folder / JSON))


def _write_vocabulary(folder: Path, model: dict[str, object]) -> None:
    vocab, merges = model.get("vocab"), model.get("merges")
    if not (isinstance(vocab, dict) and isinstance(merges, list)):
        raise ExportError(f"{folder.name}/{JSON}: got model {model.get('type')!r}, wanted BPE with vocab and merges")
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    (folder / VOCAB).write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / MERGES).write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
