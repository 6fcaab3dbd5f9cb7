from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgediffusion.engines import ort_tensorrt
from edgediffusion.engines.base import Building
from edgediffusion.engines.errors import BackendUnavailable
from edgediffusion.engines.ort_tensorrt import PROVIDERS
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.store import Store

from .test_conformance import MODEL, OFFSET, SPEC, X, Y


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The providers that a session is asked for; it then has them by name, and works on the CPU."""
    asked: list[Any] = []
    real = onnxruntime.InferenceSession

    def session(model: Path, options: Any, *, providers: list[Any], **rest: Any) -> Any:
        asked.append(providers)
        made = real(model, options, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(made, "get_providers", lambda: [providers[0][0], "CPUExecutionProvider"])
        return made

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [p.name for p in PROVIDERS.values()])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(ort_tensorrt, "CHECKS", ())
    monkeypatch.setattr(Store, "of_user", lambda: Store(tmp_path))
    monkeypatch.setattr("edgediffusion.engines.ort.DeviceRun", lambda session, spec, device: Run(session))
    return asked


class Run:
    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, feeds: Any) -> dict[str, Any]:
        return {"y": self._session.run(None, dict(feeds))[0]}


@pytest.mark.parametrize("device", PROVIDERS)
def test_engines_of_the_provider_are_kept_in_the_store(device: str, asked: list[Any], tmp_path: Path) -> None:
    with open_engine(MODEL, SPEC, device=device) as engine:
        np.testing.assert_array_equal(engine({"x": X, "offset": OFFSET})["y"], Y)
    (name, settings), *others = asked[0]
    assert name == PROVIDERS[device].name
    assert others == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    (folder,) = (tmp_path / "ort").iterdir()
    assert folder.name.startswith(f"data-{device}-{onnxruntime.__version__}-")
    assert all(settings[option] == str(folder) for option in PROVIDERS[device].caches)
    assert "trt_fp16_enable" not in settings


def test_half_precision_is_told(asked: list[Any]) -> None:
    open_engine(MODEL, SPEC, device="tensorrt", building=Building(precision="float16"))
    assert asked[0][0][1]["trt_fp16_enable"] == "1"


def test_a_wheel_without_the_provider() -> None:
    message = "here is built without TensorrtExecutionProvider; install a wheel that has it, or take --backend tensorrt"
    with pytest.raises(BackendUnavailable, match=message):
        open_engine(MODEL, SPEC, device="tensorrt")


def test_libraries_that_are_missing(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class FellBack:
        def __init__(self, *arguments: Any, **rest: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", FellBack)
    message = (
        r"libraries of NvTensorRTRTXExecutionProvider are missing or do not fit .*; pip install 'tensorrt-rtx', or"
    )
    with pytest.raises(BackendUnavailable, match=message):
        open_engine(MODEL, SPEC, device="nv_tensorrt_rtx")


def test_libraries_that_are_missing_for_onnxruntime_gpu(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def session(*arguments: Any, **rest: Any) -> None:
        raise RuntimeError(
            "pybind_state.cc:729 void RegisterTensorRTPluginsAsCustomOps() Please install TensorRT libraries as "
            "mentioned in the GPU requirements page"
        )

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    message = r"libraries of TensorrtExecutionProvider are missing or do not fit .*; pip install 'tensorrt==10\.\*', or"
    with pytest.raises(BackendUnavailable, match=message):
        open_engine(MODEL, SPEC, device="tensorrt")
