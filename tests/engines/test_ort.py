from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgediffusion.engines import ort, probe
from edgediffusion.engines.errors import BundleError, EngineError
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import GraphSpec, TensorSpec

DATA = Path(__file__).parent / "data"
SPEC = GraphSpec(
    "tiny",
    (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("offset", "float32", (3,))),
    (TensorSpec("y", "float32", ("batch", 3)),),
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
    with pytest.raises(EngineError, match=r"^probe: ONNX Runtime failed on cpu \(.*Invalid input shape.*\)$") as caught:
        engine({"x": np.ones((1, 1, 0, 4), np.float32)})
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system cannot hold a process to some cores")
def test_a_process_held_to_fewer_cores_has_fewer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 6})
    assert ort._options().intra_op_num_threads == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert ort._options().intra_op_num_threads == 0


def test_the_dialect_of_the_cpu_is_taken_and_widens_weights(tmp_path: Path) -> None:
    with open_engine(tmp_path / "none", probe.SPEC, device="cpu", dialects={"cpu": probe.MODEL}) as engine:
        assert engine({"x": np.ones((1, 1, 1, 1), np.float32)})["y"].item() == 3
    options = ort._options()
    ort._open_widened(probe.MODEL, options)
    assert options.get_session_config_entry("session.disable_quant_qdq") == "1"
