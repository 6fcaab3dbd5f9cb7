"""Readers of what others wrote, on a corpus and on what hypothesis makes of it: a value, or the error they promise."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgediffusion.runtime.metadata import Parameters

from .readers import CORPUS, KINDS, PACKED, attempt, changed, pack
from .test_damage import DAMAGES

# EDGEDIFFUSION_FUZZ=20000 pytest tests/faults/test_fuzz.py: as many of each
fuzz = settings(
    max_examples=int(os.environ.get("EDGEDIFFUSION_FUZZ", "25")),
    deadline=None,
    database=None,
    derandomize="EDGEDIFFUSION_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
CHANCE = st.randoms(use_true_random=False)
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
FILES = {name: [path.read_bytes() for path in sorted((CORPUS / name).iterdir())] for name in KINDS}


def record(content: bytes) -> Any:
    """The object that it is, None where it is none."""
    try:
        return json.loads(content)
    except ValueError:
        return None


# Of kinds that are JSON, or lines of it.
RECORDS = {
    name: records
    for name, files in FILES.items()
    if (records := [found for file in files if isinstance(found := record(file.split(b"\n")[0]), dict) and found])
}


@pytest.mark.parametrize("name", KINDS)
def test_corpus(name: str, tmp_path: Path) -> None:
    made = [result for file in FILES[name] for result in attempt(KINDS[name], file, tmp_path)]
    assert any(not isinstance(result, Exception) for result in made)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"a":' * 100_000, b'{"__metadata__":' * 100_000])
@pytest.mark.parametrize("name", KINDS)
def test_nothing_and_too_deep(name: str, content: bytes, tmp_path: Path) -> None:
    attempt(KINDS[name], content, tmp_path)


@pytest.mark.parametrize("name", RECORDS)
@fuzz
@given(chance=CHANCE)
def test_records_that_were_changed(name: str, chance: Random, tmp_path: Path) -> None:
    """In files of lines each is one."""
    text = json.dumps(changed(chance.choice(RECORDS[name]), chance)).encode()
    attempt(KINDS[name], text + b"\n" * (KINDS[name].file.endswith("l")), tmp_path)


@pytest.mark.parametrize("name", KINDS)
@fuzz
@given(chance=CHANCE, damage=st.sampled_from(DAMAGES))
def test_files_that_were_damaged(
    name: str, chance: Random, damage: Callable[[bytes, Random], bytes], tmp_path: Path
) -> None:
    attempt(KINDS[name], damage(chance.choice([file for file in FILES[name] if file]), chance), tmp_path)


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
def test_safetensors(header: str, length: int | None, body: bytes, tmp_path: Path) -> None:
    """Arrays hold no more than the file does."""
    text = header.encode(errors="surrogatepass")
    file = (len(text) if length is None else length).to_bytes(8, "little") + text + body
    made: Any = attempt(KINDS["safetensors"], file, tmp_path)[0]
    if not isinstance(made, ValueError):
        _, arrays = made
        assert sum(array.nbytes for array in arrays.values()) <= 2 * len(arrays) * len(body)


WHOLE = Parameters.from_text(
    "a red apple\nNegative prompt: blue\nSteps: 20, Sampler: Euler, CFG scale: 5, Seed: 1, Size: 8x8"
)


@fuzz
@given(
    settings=st.lists(
        st.sampled_from((*WHOLE.to_text().split(), ":", ",", '"', "\n", "Hires steps: 1,", "é")), max_size=30
    ).map(" ".join)
)
def test_parameters_in_pictures(settings: str, tmp_path: Path) -> None:
    attempt(KINDS["parameters"], f"apple\nSteps: 1, {settings}".encode(), tmp_path)


RECORD = {
    "schema": 1,
    "version": "0",
    "target": None,
    "since": None,
    "files": {name: {"bytes": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in PACKED.items()},
}
ODD = ("../a", "/a", "a/../b", "C:a", "a\\b")
# zipfile cuts names at a NUL, and writes no empty ones.
NAMES = st.sampled_from((*PACKED, *ODD)) | st.text(max_size=12).filter(lambda name: name.split("\0")[0])


@fuzz
@given(
    members=st.just(PACKED) | st.dictionaries(NAMES, st.binary(max_size=8), max_size=4),
    renamed=st.none() | NAMES,
)
def test_packs(members: dict[str, bytes], renamed: str | None, tmp_path: Path) -> None:
    """Names that would lead elsewhere, and members that the record does not name."""
    files = RECORD["files"]
    assert isinstance(files, dict)
    if renamed is not None:
        files = files | {renamed: {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}}
        members = members | {renamed: b""}
    attempt(KINDS["pack"], pack(json.dumps(RECORD | {"files": files}).encode(), members), tmp_path)
