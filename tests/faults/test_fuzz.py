"""Readers of what others wrote, on what hypothesis makes of it: a value, or the error that they promise."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edgediffusion.engines.errors import BundleError, EdgeDiffusionError, UsageError
from edgediffusion.runtime import Bundle
from edgediffusion.runtime.golden import read_golden
from edgediffusion.runtime.manifest import MANIFEST
from edgediffusion.runtime.metadata import JSON_KEY, TEXT_KEY, Parameters, png_info, read_parameters
from edgediffusion.runtime.packs.read import open_pack
from edgediffusion.runtime.packs.record import RECORD
from edgediffusion.runtime.packs.unpack import unpack
from edgediffusion.runtime.pipeline import BUILTIN
from edgediffusion.runtime.repeat import repeat
from edgediffusion.runtime.tensors import read_tensors

from .test_damage import DAMAGES

# EDGEDIFFUSION_FUZZ=20000 pytest tests/faults/test_fuzz.py: as many of each
fuzz = settings(
    max_examples=int(os.environ.get("EDGEDIFFUSION_FUZZ", "25")),
    deadline=None,
    database=None,
    derandomize="EDGEDIFFUSION_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
SIZES = st.integers(-2, 40) | st.sampled_from((1 << 31, 1 << 63, 1 << 70, 1 << 4000, -(1 << 63)))
JSON = st.recursive(
    st.none() | st.booleans() | SIZES | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(("F32", "F16", "BF16", "I64", "U8", "")) | JSON,
        "shape": st.lists(SIZES, max_size=3) | JSON,
        "data_offsets": st.lists(SIZES, min_size=1, max_size=3) | JSON,
    },
)
DEEP = "[" * 100_000


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def one_line(error: Exception) -> None:
    assert "\n" not in str(error), str(error)


@fuzz
@given(
    header=st.dictionaries(st.text(max_size=8) | st.just("__metadata__"), TENSOR | JSON, max_size=4).map(json.dumps)
    | st.text(),
    length=st.none() | st.integers(0, 100) | st.sampled_from((1 << 40, (1 << 64) - 1)),
    body=st.binary(max_size=200),
)
@example(
    header='{"__metadata__": {"label": "a"}, "input.x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
    length=None,
    body=bytes(4),
)
@example(header=DEEP, length=None, body=b"")
def test_safetensors(tmp_path: Path, header: str, length: int | None, body: bytes) -> None:
    text = header.encode(errors="surrogatepass")
    path = write(
        tmp_path / "a.safetensors", (len(text) if length is None else length).to_bytes(8, "little") + text + body
    )
    try:
        _, arrays = read_tensors(path)
    except ValueError:
        with pytest.raises(BundleError, match=r"a\.safetensors: not golden outputs"):
            read_golden(path)
    else:
        assert sum(array.nbytes for array in arrays.values()) <= 2 * len(arrays) * len(body)


@st.composite
def changes(draw: st.DrawFn, record: Any) -> Any:
    """`record` with some of its parts replaced, taken away or doubled."""
    record = copy.deepcopy(record)
    for _ in range(draw(st.integers(1, 3))):
        node = record
        while True:
            key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
            child = node[key]
            if not (isinstance(child, (dict, list)) and child) or draw(st.integers(0, 4)) == 0:
                break
            node = child
        match draw(st.integers(0, 3)):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[draw(st.text(max_size=8))] = child
            case _:
                node[key] = draw(JSON)
        if not record:
            break
    return record


@fuzz
@given(record=changes(json.loads((BUILTIN / MANIFEST).read_text(encoding="utf-8"))))
def test_manifests(tmp_path: Path, record: Any) -> None:
    """Beside the real files: what opens has every field of its type."""
    folder = tmp_path / "bundle"
    if not folder.exists():
        folder.mkdir()
        for path in BUILTIN.iterdir():
            if path.name != MANIFEST:
                (folder / path.name).symlink_to(path)
    (folder / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    try:
        with Bundle.open(folder) as bundle:
            assert json.loads(bundle.manifest.to_json())
    except BundleError as error:
        one_line(error)


def picture(**texts: str) -> bytes:
    info, file = PngInfo(), io.BytesIO()
    for key, text in texts.items():
        info.add_itxt(key, text)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def try_picture(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            parameters = read_parameters(path)
            parameters.to_text()
            repeat(path, parameters, set())
        except UsageError as error:
            one_line(error)


WHOLE = Parameters.from_text(
    "a red apple\nNegative prompt: blue\nSteps: 20, Sampler: Euler, CFG scale: 5, Seed: 1, Size: 8x8"
)


@fuzz
@given(
    ours=st.none() | changes(json.loads(WHOLE.to_json())).map(json.dumps) | JSON.map(json.dumps),
    theirs=st.lists(
        st.sampled_from((*WHOLE.to_text().split(), ":", ",", '"', "\n", "Hires steps: 1,", "é")), max_size=30
    )
    .map(" ".join)
    .map(lambda text: f"apple\nSteps: 1, {text}"),
)
@example(ours=DEEP, theirs="")
def test_parameters_in_pictures(tmp_path: Path, ours: str | None, theirs: str) -> None:
    texts = {TEXT_KEY: theirs} | ({} if ours is None else {JSON_KEY: ours})
    try_picture(write(tmp_path / "a.png", picture(**texts)))


@fuzz
@given(seed=st.randoms(use_true_random=False), damage=st.sampled_from(DAMAGES))
def test_damaged_pictures(tmp_path: Path, seed: Any, damage: Any) -> None:
    info, file = png_info(WHOLE), io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    try_picture(write(tmp_path / "a.png", damage(file.getvalue(), seed)))


FILES = {"edgediffusion.json": b"{}", "unet/config.json": b"{}\n", "unet/model.onnx": b""}
PACK = {
    "schema": 1,
    "version": "0",
    "target": None,
    "since": None,
    "files": {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in FILES.items()},
}
ODD = ("../a", "/a", "a/../b", "C:a", "a\\b")
# zipfile cuts names at a NUL, and writes no empty ones.
NAMES = st.sampled_from((*FILES, *ODD)) | st.text(max_size=12).filter(lambda name: name.split("\0")[0])


@fuzz
@given(
    record=st.just(PACK) | changes(PACK) | JSON,
    members=st.just(FILES) | st.dictionaries(NAMES, st.binary(max_size=8), max_size=4),
    renamed=st.none() | NAMES,
)
@example(record=PACK | {"files": {}}, members={}, renamed=None)
def test_packs(tmp_path: Path, record: Any, members: dict[str, bytes], renamed: str | None) -> None:
    """Nothing is written outside of the folder, or beyond what the record says."""
    if renamed is not None and isinstance(record, dict) and isinstance(record.get("files"), dict):
        record = record | {"files": record["files"] | {renamed: {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}}}
        members = members | {renamed: b""}
    folder = Path(
        os.path.join(tmp_path, "in", hashlib.sha256(repr((record, members)).encode(errors="replace")).hexdigest())
    )
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(RECORD, json.dumps(record))
        for name, content in members.items():
            archive.writestr(name.encode(errors="replace").decode(), content)
    path = write(tmp_path / "a.edz", file.getvalue())
    before = set(tmp_path.iterdir()) | {tmp_path / "in"}
    try:
        pack = open_pack(path)
        unpack(pack, folder)
    except EdgeDiffusionError as error:
        one_line(error)
    else:
        assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == set(pack.record.files)
    assert set(tmp_path.iterdir()) <= before
