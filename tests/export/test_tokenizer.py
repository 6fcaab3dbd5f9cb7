"""Whichever form the source has, the bundle has both, and they agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgediffusion.engines.errors import ExportError
from edgediffusion.export.tokenizer import write_tokenizer
from edgediffusion.runtime.tokenizer import ClipTokenizer

PROMPTS = ["", "a red apple", "It's 2 o'clock - née  CAFÉ!"]


@pytest.fixture
def original(checkpoint: Path) -> Path:
    return checkpoint / "tokenizer"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).unlink()
    return folder


def test_json_is_added_to_vocabulary_and_merges(original: Path, tmp_path: Path) -> None:
    assert not (original / "tokenizer.json").exists()
    write_tokenizer(files(original), tmp_path / "both")
    only_json = without(tmp_path / "both", "vocab.json", "merges.txt")
    assert (ClipTokenizer(only_json)(PROMPTS) == ClipTokenizer(original)(PROMPTS)).all()


def test_vocabulary_and_merges_are_added_to_json(original: Path, tmp_path: Path) -> None:
    write_tokenizer(files(original), tmp_path / "json")
    model = json.loads((tmp_path / "json" / "tokenizer.json").read_text())
    model["model"]["vocab"]["ap"] = len(model["model"]["vocab"])
    model["model"]["merges"] = [["a", "p"]]
    without(tmp_path / "json", "vocab.json", "merges.txt")
    (tmp_path / "json" / "tokenizer.json").write_text(json.dumps(model))
    write_tokenizer(files(tmp_path / "json"), tmp_path / "both")
    assert (tmp_path / "both" / "merges.txt").read_text() == "#version: 0.2\na p\n"
    expected = ClipTokenizer(tmp_path / "json")(PROMPTS)
    assert (ClipTokenizer(without(tmp_path / "both", "tokenizer.json"))(PROMPTS) == expected).all()
    assert (expected != ClipTokenizer(original)(PROMPTS)).any()


def test_settings_are_copied(original: Path, tmp_path: Path) -> None:
    write_tokenizer(files(original), tmp_path / "out")
    name = "tokenizer_config.json"
    assert (tmp_path / "out" / name).read_bytes() == (original / name).read_bytes()


def test_no_tokenizer(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original, tmp_path / "in")
    (tmp_path / "in" / "merges.txt").unlink()
    with pytest.raises(
        ExportError, match=r"out: no tokenizer in the checkpoint \(tokenizer.json, or vocab.json and merges.txt\)"
    ):
        write_tokenizer(files(tmp_path / "in"), tmp_path / "out")


def test_another_kind_of_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": []}}')
    with pytest.raises(ExportError, match=r"out/tokenizer.json: got model 'Unigram', wanted BPE with vocab and merges"):
        write_tokenizer(files(tmp_path / "in"), tmp_path / "out")
