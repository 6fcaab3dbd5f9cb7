from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgediffusion.engines.errors import BackendUnavailable, UnknownName
from edgediffusion.engines.probe import MODEL, SPEC
from edgediffusion.engines.registry import open_engine


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UnknownName, match="unknown backend 'onnx'; known: ort"):
        open_engine(MODEL, SPEC, backend="onnx")
    with pytest.raises(UnknownName, match="unknown device 'gpu'; known: auto, cpu, cuda"):
        open_engine(MODEL, SPEC, device="gpu")


@pytest.mark.parametrize(("device", "extra"), [("auto", "cpu"), ("cpu", "cpu"), ("cuda", "cuda")])
def test_a_missing_backend_names_its_extra(device: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "edgediffusion.engines.ort", raising=False)
    message = rf"^backend 'ort' cannot be imported \(.*onnxruntime.*\); pip install 'edgediffusion\[{extra}\]'$"
    with pytest.raises(BackendUnavailable, match=message):
        open_engine(Path("none.onnx"), SPEC, device=device)
