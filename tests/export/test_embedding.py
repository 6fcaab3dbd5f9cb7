"""Textual inversions added at export, against what diffusers makes of the same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from edgediffusion.engines.errors import ExportError
from edgediffusion.export.reference import load_pipeline
from edgediffusion.export.sources import Source, open_source
from edgediffusion.export.sources.embedding import add_embeddings
from edgediffusion.export.to_onnx import quiet
from edgediffusion.export.tokenizer import write_tokenizer
from edgediffusion.runtime.tokenizer import ClipTokenizer

WIDTH = 32
PROMPTS = ["a <toy> on a table", "<toy>", "nothing of it", "two: <toy>,<toy>"]


def rows(source: Source, name: str = "text_encoder") -> torch.Tensor:
    weights = source.parts[name].weights
    return next(w.read() for key, w in weights.items() if key.endswith("token_embedding.weight"))


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_the_same_as_diffusers(checkpoint: Path, tmp_path: Path, vectors: int, form: str) -> None:
    source, file = open_source(checkpoint), tmp_path / "toy.safetensors"
    if form == "tokenizer.json":
        write_tokenizer(source.folder("tokenizer"), tmp_path / "tokenizer")
        for path in (tmp_path / "tokenizer").iterdir():
            source.settings[f"tokenizer/{path.name}"] = path.read_bytes()  # type: ignore[index]
    save_file({"<toy>": torch.linspace(-1, 1, vectors * WIDTH).reshape(vectors, WIDTH)}, file)
    pipeline = load_pipeline(checkpoint)
    with quiet():
        pipeline.load_textual_inversion(str(file))
    changed = add_embeddings(source, [file])
    wanted = pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(rows(changed), wanted.detach().half())
    assert changed.parts["text_encoder"].config["vocab_size"] == len(wanted)
    write_tokenizer(changed.folder("tokenizer"), tmp_path / "out")
    theirs: Any = pipeline.tokenizer
    converted = [pipeline.maybe_convert_prompt(prompt, theirs) for prompt in PROMPTS]
    ids = theirs(converted, padding="max_length", max_length=77).input_ids
    assert ClipTokenizer(tmp_path / "out")(PROMPTS).tolist() == ids


def test_the_name_of_the_file_is_the_word(checkpoint: Path, tmp_path: Path) -> None:
    save_file({"emb_params": torch.ones(2, WIDTH)}, tmp_path / "toy.safetensors")
    changed = add_embeddings(open_source(checkpoint), [tmp_path / "toy.safetensors"])
    write_tokenizer(changed.folder("tokenizer"), tmp_path / "out")
    first = len(rows(changed)) - 2
    assert ClipTokenizer(tmp_path / "out")(["toy"])[0, 1:3].tolist() == [first, first + 1]
    assert tmp_path / "toy.safetensors" in changed.parts["text_encoder"].files


def test_both_encoders_of_sdxl(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    source = open_source(checkpoints("sdxl"))
    widths = {name: source.parts[name].config["hidden_size"] for name in ("text_encoder", "text_encoder_2")}
    tensors = {"clip_l": torch.ones(widths["text_encoder"]), "clip_g": -torch.ones(2, widths["text_encoder_2"])}
    save_file(tensors, tmp_path / "toy.safetensors")
    changed = add_embeddings(source, [tmp_path / "toy.safetensors"])
    assert (rows(changed)[-1] == 1).all()
    assert (rows(changed, "text_encoder_2")[-2:] == -1).all()
    assert len(rows(changed)) == len(rows(source)) + 1


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"<toy>": (2, 7)}, r"toy.safetensors: <toy> has shape \(2, 7\), the text encoders have widths .*32"),
        ({"a</w>": (1, WIDTH)}, r"toy.safetensors: 'a</w>' is a token already; rename the file, or leave it out"),
    ],
)
def test_bad_files(checkpoint: Path, tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str) -> None:
    save_file({key: torch.ones(shape) for key, shape in tensors.items()}, tmp_path / "toy.safetensors")
    with pytest.raises(ExportError, match=message):
        add_embeddings(open_source(checkpoint), [tmp_path / "toy.safetensors"])


def test_a_pickled_file(checkpoint: Path) -> None:
    with pytest.raises(ExportError, match=r"x.pt: pickled weights.*convert them with: python -c "):
        add_embeddings(open_source(checkpoint), [Path("x.pt")])
