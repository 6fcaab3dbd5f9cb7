#!/usr/bin/env python3
"""Readers of what others wrote, on what atheris makes of a corpus: files that take a reader where none has been.

    pip install atheris
    tests/faults/fuzz.py /tmp/onnx tests/faults/corpus/onnx -max_total_time=300
    tests/faults/fuzz.py tests/faults/corpus/onnx /tmp/onnx -set_cover_merge=1 -use_counters=0

The name of the first folder, which new files go to, is that of the kind (`readers.KINDS`); what follows are further
folders and options of libFuzzer. A finding is printed and written to `finding-*` here, once for each place that it
comes from, and the search goes on. It belongs into the corpus when it is mended.
"""

from __future__ import annotations

import hashlib
import json
import runpy
import sys
import tempfile
import traceback
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["edgediffusion", "zipfile", "tarfile", "PIL.PngImagePlugin"]):
    READERS = runpy.run_path(str(Path(__file__).with_name("readers.py")))

FOLDER = Path(tempfile.mkdtemp())
KIND = Path(next(argument for argument in sys.argv[1:] if not argument.startswith("-"))).name
found: set[object] = set()


def try_one(content: bytes) -> None:
    """One file."""
    try:
        READERS["attempt"](READERS["KINDS"][KIND], content, FOLDER)
    except Exception as error:
        place = type(error), traceback.extract_tb((error.__context__ or error).__traceback__)[-1].lineno
        if place not in found:
            found.add(place)
            name = f"finding-{KIND}-{hashlib.sha1(content).hexdigest()[:8]}"
            Path(name).write_bytes(content)
            traceback.print_exc()
            sys.stderr.write(f"{name}\n")


def mutate(content: bytes, most: int, seed: int) -> bytes:
    """Of JSON, or of a line of it, mostly the values, else the bytes."""
    chance = Random(seed)
    lines = [content] if chance.random() < 0.5 else content.split(b"\n")
    k = chance.randrange(len(lines))
    try:
        lines[k] = json.dumps(READERS["changed"](json.loads(lines[k]), chance)).encode()
    except (ValueError, RecursionError):
        return bytes(atheris.Mutate(content, most))
    result = b"\n".join(lines)
    return result if chance.random() < 0.95 and len(result) <= most else bytes(atheris.Mutate(content, most))


atheris.Setup(sys.argv, try_one, custom_mutator=mutate)
atheris.Fuzz()
