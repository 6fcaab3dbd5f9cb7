from __future__ import annotations

import ctypes
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgediffusion.engines import ort, probe
from edgediffusion.engines.errors import BackendUnavailable, BundleError, EngineError
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import GraphSpec, TensorSpec

DATA = Path(__file__).parent / "data"
SPEC = GraphSpec(
    "tiny",
    (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("offset", "float32", (3,))),
    (TensorSpec("y", "float32", ("batch", 3)),),
)
without_cuda = pytest.mark.skipif(
    ort.CUDA in onnxruntime.get_available_providers(), reason="says what happens where ONNX Runtime has no CUDA"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(DATA, tmp_path / "graph")
    return tmp_path / "graph" / "tiny.onnx"


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "text"])
def test_a_damaged_graph(damage: str, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = model.read_bytes()
    model.unlink()
    if damage != "missing":
        model.write_bytes({"empty": b"", "truncated": content[:100], "text": b"not a graph"}[damage])
    with pytest.raises(BundleError, match=r"tiny\.onnx: .*; export it again$") as caught:
        open_engine(model, SPEC, device="cpu")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_missing_weights(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (model.parent / "tiny.bin").unlink()
    with pytest.raises(
        BundleError, match=r"tiny\.onnx: ONNX Runtime cannot load it \(.*tiny\.bin.*\); export it again"
    ):
        open_engine(model, SPEC, device="cpu")
    assert capfd.readouterr() == ("", "")


def test_truncated_weights(model: Path) -> None:
    weights = model.parent / "tiny.bin"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(BundleError, match=r"tiny\.onnx: ONNX Runtime cannot load it \(.*\); export it again"):
        open_engine(model, SPEC, device="cpu")


def test_a_graph_with_other_inputs(model: Path) -> None:
    inputs = GraphSpec("tiny", SPEC.inputs[:1], SPEC.outputs)
    with pytest.raises(BundleError, match=r"tiny\.onnx: inputs offset, x, expected x; export it again"):
        open_engine(model, inputs, device="cpu")
    outputs = GraphSpec("tiny", SPEC.inputs, (TensorSpec("z", "float32", (3,)),))
    with pytest.raises(BundleError, match=r"tiny\.onnx: outputs y, expected z; export it again"):
        open_engine(model, outputs, device="cpu")


def test_a_graph_that_fails_while_it_runs(capfd: pytest.CaptureFixture[str]) -> None:
    engine = open_engine(probe.MODEL, probe.SPEC, device="cpu")
    with pytest.raises(EngineError, match=r"^probe: ONNX Runtime failed \(.*Invalid input shape.*\)$") as caught:
        engine({"x": np.ones((1, 1, 0, 4), np.float32)})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@without_cuda
def test_a_build_without_cuda(model: Path) -> None:
    message = r"built without CUDA; pip uninstall -y onnxruntime && pip install 'edgediffusion\[cuda\]'$"
    with pytest.raises(BackendUnavailable, match=message):
        open_engine(model, SPEC, device="cuda")
    with open_engine(model, SPEC, device="auto") as engine:
        assert engine.spec is SPEC


class SessionThatFellBack:
    """What onnxruntime-gpu gives where CUDA does not start: a session on the CPU, and no word about it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def get_providers(self) -> list[str]:
        return [ort.CPU]


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (False, r"^no NVIDIA driver on this machine; install it, or take device 'cpu'$"),
        (True, r"libraries of onnxruntime-gpu are missing.*; pip install 'onnxruntime-gpu\[cuda,cudnn\]'$"),
    ],
)
def test_cuda_that_does_not_start(driver: bool, message: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        if not driver:
            raise OSError(name)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort.CUDA, ort.CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", SessionThatFellBack)
    monkeypatch.setattr(ctypes, "CDLL", load)
    with pytest.raises(BackendUnavailable, match=message):
        open_engine(model, SPEC, device="cuda")


def test_engines_opened_together_leave_stdout_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.02, 0.06])  # the second to begin ends last
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort.CUDA, ort.CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", SessionThatFellBack)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: time.sleep(next(seconds)))
    before = sys.stdout
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(open_engine, model, SPEC, device="cuda") for _ in range(2)]:
            assert isinstance(future.exception(), BackendUnavailable)
    assert sys.stdout is before


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot hold a process to some cores")
def test_a_process_held_to_fewer_cores_has_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 6})
    assert ort._options().intra_op_num_threads == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert ort._options().intra_op_num_threads == 0
