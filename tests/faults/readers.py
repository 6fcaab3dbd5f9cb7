"""Readers of what others wrote, each with the error that it promises, by the kind of file that they read.

A value or that error: anything else that comes out is a finding. hypothesis (`test_fuzz.py`) and atheris (`fuzz.py`)
look for some; `corpus/` has a folder of files for each kind, which `test_fuzz.py` replays.
"""

from __future__ import annotations

import copy
import io
import json
import math
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edgediffusion.engines.archive import import_engines
from edgediffusion.engines.errors import BundleError, EdgeDiffusionError, ExportError, UsageError
from edgediffusion.engines.onnx_file import map_weights, read_onnx
from edgediffusion.engines.onnx_relocate import relocated
from edgediffusion.engines.onnx_scales import with_scales
from edgediffusion.engines.spec import GraphSpec, TensorSpec
from edgediffusion.engines.store import DamagedEngine, Store, read_sidecar
from edgediffusion.export.sources.base import Source, read_json
from edgediffusion.export.sources.embedding import add_embeddings
from edgediffusion.export.sources.lora import fuse_loras
from edgediffusion.runtime import Bundle, Pipeline
from edgediffusion.runtime.foreign import describe
from edgediffusion.runtime.golden import read_golden, relative_errors, tiled
from edgediffusion.runtime.images import open_image
from edgediffusion.runtime.jobs import plan_job, read_lines
from edgediffusion.runtime.journal import Job, Journal
from edgediffusion.runtime.manifest import MANIFEST
from edgediffusion.runtime.metadata import JSON_KEY, TEXT_KEY, read_parameters
from edgediffusion.runtime.packs.read import open_pack
from edgediffusion.runtime.packs.record import RECORD
from edgediffusion.runtime.packs.unpack import unpack
from edgediffusion.runtime.pipeline import BUILTIN
from edgediffusion.runtime.repeat import repeat
from edgediffusion.runtime.tensors import read_tensors

CORPUS = Path(__file__).parent / "corpus"
# Beside the manifest of the built-in model all that planning a picture reads, but small.
SETTINGS = {
    "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
    "scheduler/scheduler_config.json": b'{"_class_name": "EulerDiscreteScheduler"}',
    "tokenizer/merges.txt": b"#version: 0.2\na p</w>",
    "tokenizer/tokenizer_config.json": b"{}",
    "tokenizer/vocab.json": b'{"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "p</w>": 3, "ap</w>": 4}',
    "unet/config.json": b'{"sample_size": 16}',
    "vae_decoder/config.json": b'{"block_out_channels": [8, 8, 8, 8]}',
}
PACKED = {MANIFEST: b"{}", "unet/config.json": b"{}\n", "unet/model.onnx": b""}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file: what it is called in its folder, and its readers. `lay` makes the rest of an empty folder.

    `wrap` makes a file of what a fuzzer thought of, where most of a file is none of our reader's business.
    """

    file: str
    readers: dict[Callable[[Path], object], type[Exception]]
    lay: Callable[[Path], object] = lambda folder: None
    wrap: Callable[[bytes], bytes] = bytes


def attempt(kind: Kind, content: bytes, folder: Path) -> list[object]:
    """What each reader makes of a file with this `content` in `folder`: a value, or the error, of one line."""
    path = folder / kind.file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        kind.lay(folder)
    path.write_bytes(kind.wrap(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = [_made(read, promised, path) for read, promised in kind.readers.items()]
    assert not [error for error in made if isinstance(error, Exception) and "\n" in str(error)]
    return made


def _made(read: Callable[[Path], object], promised: type[Exception], path: Path) -> object:
    try:
        return read(path)
    except promised as error:
        return error


# What a value of JSON is replaced by.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 77, 0.5, -0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf),
    *(1 << 31, 1 << 63, -(1 << 63), 1 << 70, 10**400),
    *("", "a", "é", "a\nb", "\0", "\ud800", "0", "float32", "../a", "/a", "C:a", "a\\b", "a" * 300, "_class_name"),
    *([], {}, [[]], [0], [1, 2], ["a"], [None], {"a": {}}, {"content": "a"}, {"": 0}),
)


def changed(record: Any, chance: Random) -> Any:
    """`record` as JSON has it, with some of its parts replaced, taken away, renamed or doubled."""
    record = [copy.deepcopy(record)]
    for _ in range(chance.randint(1, 3)):
        node, key = chance.choice(list(_places(record)))
        if node is record or chance.random() < 0.6:
            node[key] = copy.deepcopy(chance.choice(ODD))
        elif chance.random() < 0.4:
            del node[key]
        elif isinstance(node, dict):
            node[chance.choice((*node, "a", ""))] = node[key]
        else:
            node.append(copy.deepcopy(node[key]))
    return record[0]


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, key
        if isinstance(value, (dict, list)):
            yield from _places(value)


def picture(**texts: str) -> bytes:
    """A PNG with these text chunks."""
    info, file = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        info.add_itxt(key, text)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def pack(record: bytes, members: dict[str, bytes] = PACKED) -> bytes:
    """A pack of these files, which says of itself what `record` says."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(RECORD, record)
        for name, content in members.items():
            archive.writestr(name.encode(errors="replace").decode(), content)
    return file.getvalue()


def _with_parameters(text: bytes) -> bytes:
    return picture(**{JSON_KEY if text.startswith(b"{") else TEXT_KEY: text.decode(errors="replace")})


def _with_checksums(png: bytes) -> bytes:
    """Right ones, which no fuzzer guesses, behind its chunks."""
    result, start = bytearray(png), 8
    while (end := start + 8 + int.from_bytes(png[start : start + 4], "big")) + 4 <= len(png):
        result[end : end + 4] = zlib.crc32(png[start + 4 : end]).to_bytes(4, "big")
        start = end + 4
    return bytes(result)


def _repeat(path: Path) -> None:
    parameters = read_parameters(path)
    parameters.to_text()
    repeat(path, parameters, set())


def _unpack(path: Path) -> None:
    """Nothing is written outside of the folder, or beyond what the record says."""
    folder = path.parent / "in"
    before = {*path.parent.iterdir(), folder}
    opened = open_pack(path)
    try:
        unpack(opened, folder)
        assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(opened.record.files)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        assert set(path.parent.iterdir()) <= before


def _open(path: Path) -> None:
    """What opens has every field of its type."""
    with Bundle.open(path.parent) as bundle:
        assert json.loads(bundle.manifest.to_json())


def _lay_bundle(folder: Path) -> None:
    """All that the corpus's manifests name, empty."""
    for name in json.loads((CORPUS / "manifest" / "whole").read_bytes())["files"]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


@cache
def _bundle() -> Bundle:
    return Bundle.open(BUILTIN, low_memory=True)


def _lay_settings(folder: Path) -> None:
    for name, content in SETTINGS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _pipeline(folder: Path) -> Pipeline:
    bundle = copy.copy(_bundle())
    bundle.path = folder
    return Pipeline(bundle)


def _plan(path: Path) -> None:
    folder = path.parent if path.name in SETTINGS else path.parent.parent
    pipeline = _pipeline(folder)
    for tokenizer in pipeline.tokenizers.values():
        tokenizer(["a ap, 1"])
    pipeline.steps("a ap, 1", num_inference_steps=4)


def _plan_job(path: Path) -> None:
    plan_job(_pipeline(path.parent), read_lines(path), {}, path, path.with_suffix(".png"))


def _read_journal(path: Path) -> None:
    journal = Journal(path)
    journal.is_over(Job(path, 1, "a red apple"))
    journal.close()


def _verify(path: Path) -> object:
    sample = read_golden(path, _GRAPH)
    tiled(sample.feeds, _GRAPH)
    return relative_errors({"y": np.zeros((1, 2))}, sample.outputs)


_GRAPH = GraphSpec(
    "unet",
    (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("t", "int64", (1,))),
    (TensorSpec("y", "float32", ("batch", 2)),),
)
_NOTHING = Source(name="nothing", index={}, parts={}, settings={})
_OF_TENSORS: dict[Callable[[Path], object], type[Exception]] = {
    read_tensors: ValueError,
    _verify: BundleError,
    lambda path: fuse_loras(_NOTHING, [(path, 1.0)]): ExportError,
    lambda path: add_embeddings(_NOTHING, [path]): ExportError,
}
_CALLED = {
    "model_index": "model_index.json",
    "scheduler": "scheduler/scheduler_config.json",
    "merges": "tokenizer/merges.txt",
    "tokenizer": "tokenizer/tokenizer.json",
    "tokenizer_config": "tokenizer/tokenizer_config.json",
    "vocab": "tokenizer/vocab.json",
    "unet": "unet/config.json",
    "vae": "vae_decoder/config.json",
}
KINDS = {
    "safetensors": Kind(file="a.safetensors", readers=_OF_TENSORS),
    "header": Kind(
        file="a.safetensors",
        readers=_OF_TENSORS,
        wrap=lambda header: len(header).to_bytes(8, "little") + header + bytes(20),
    ),
    "onnx": Kind(
        file="model.onnx",
        lay=lambda folder: (folder / "model.safetensors").write_bytes(bytes(64)),
        readers={
            read_onnx: BundleError,
            map_weights: BundleError,
            with_scales: BundleError,
            lambda path: relocated(path.read_bytes(), {"model.safetensors": 64}, "a.edz"): ValueError,
        },
    ),
    "manifest": Kind(file=MANIFEST, readers={_open: BundleError}, lay=_lay_bundle),
    "foreign": Kind(
        file="model_index.json", readers={lambda path: describe(path.parent): BundleError, read_json: ExportError}
    ),
    **{name: Kind(file=file, readers={_plan: EdgeDiffusionError}, lay=_lay_settings) for name, file in _CALLED.items()},
    "picture": Kind(file="a.jpg", readers={_repeat: UsageError, open_image: UsageError}),
    "png": Kind(file="a.png", readers={_repeat: UsageError, open_image: UsageError}, wrap=_with_checksums),
    "parameters": Kind(file="a.png", readers={_repeat: UsageError}, wrap=_with_parameters),
    "pack": Kind(file="a.edz", readers={_unpack: EdgeDiffusionError}),
    "record": Kind(file="a.edz", readers={_unpack: EdgeDiffusionError}, wrap=pack),
    "sidecar": Kind(file="unet-b5167886757cec2b692a.json", readers={read_sidecar: DamagedEngine}),
    "engines": Kind(
        file="a.tar", readers={lambda path: import_engines(path, Store(path.parent / "store")): UsageError}
    ),
    "jobs": Kind(file="jobs.jsonl", readers={_plan_job: UsageError}, lay=_lay_settings),
    "journal": Kind(file="journal.jsonl", readers={_read_journal: UsageError}),
}
