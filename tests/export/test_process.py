"""A function in a child process: its memory, its errors, its end."""

from __future__ import annotations

import functools
import os
import signal
import sys
from pathlib import Path

import pytest

from edgediffusion.engines.errors import ExportError, UnknownName
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import GraphSpec
from edgediffusion.export import process
from edgediffusion.export.process import in_child

SPEC = GraphSpec("none", (), ())


@pytest.fixture(autouse=True)
def nothing_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PRELOAD", [])


def test_the_peak_is_the_childs() -> None:
    peak = in_child("nothing", functools.partial(bytearray, 1))
    larger = in_child("an array", functools.partial(b"x".__mul__, 300 << 20))
    assert peak is not None
    assert larger is not None
    assert 250 << 20 < larger - peak < 400 << 20


def test_an_error_is_the_same_here() -> None:
    with pytest.raises(UnknownName, match=r"^unknown backend 'abacus'; known: ort"):
        in_child("a component", functools.partial(open_engine, Path(), SPEC, backend="abacus"))


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_child_that_is_killed() -> None:
    with pytest.raises(ExportError, match=r"^unet: its process was killed by signal 9, most likely for lack of memory"):
        in_child("unet", functools.partial(signal.raise_signal, signal.SIGKILL))


def test_a_child_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    in_child("nothing", functools.partial(exec, "import os; assert not os.environ['CUDA_VISIBLE_DEVICES']"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
