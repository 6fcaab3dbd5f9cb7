"""CLIP's tokenizer, which original checkpoints leave to the code that reads them.

`clip_merges.txt.gz` comes from open_clip (MIT, see `clip_merges.LICENSE`); the vocabulary follows from it.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

MERGES = Path(__file__).with_name("clip_merges.txt.gz")
# The bytes, each as one letter: those that print as themselves, then the others from U+0100 on.
LETTERS = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
START, END = "<|startoftext|>", "<|endoftext|>"


def tokenizer_files(pad_token: str) -> dict[str, bytes]:
    """Name -> content of the files of a transformers CLIPTokenizer that fills prompts up with `pad_token`."""
    merges = gzip.decompress(MERGES.read_bytes()).decode()
    joined = (merge.replace(" ", "") for merge in merges.splitlines())
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *joined, START, END]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": pad_token,
    }
    return {
        "vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False).encode(),
        "merges.txt": f"#version: 0.2\n{merges}".encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }
