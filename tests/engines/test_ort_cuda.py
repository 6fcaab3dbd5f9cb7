"""What happens around the CUDA provider: with fakes where there is no GPU, and on one where there is."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgediffusion.engines import ort_arena, ort_cuda, ort_device, probe
from edgediffusion.engines.base import Building, Engine, HostEngine
from edgediffusion.engines.errors import BackendUnavailable, BundleError, EngineError, OutOfMemory
from edgediffusion.engines.ort_arena import Arena
from edgediffusion.engines.ort_device import DeviceRun
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import GraphSpec, TensorSpec

MODEL = Path(__file__).parent / "data" / "tiny.onnx"
SPEC = GraphSpec(
    "tiny",
    (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("offset", "float32", (3,))),
    (TensorSpec("y", "float32", ("batch", 3)),),
)
OFFSET = np.zeros(3, np.float32)


class Driver:
    """libcuda.so.1 of a machine with `gpus`."""

    def __init__(self, gpus: int = 1, version: int = 13000, status: int = 0) -> None:
        self.gpus, self.version, self.status = gpus, version, status

    def cuInit(self, flags: int) -> int:
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.gpus
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0


class Session:
    """A session of onnxruntime-gpu; `errors` come one after another where it is made."""

    errors: list[str] = []  # noqa: RUF012
    providers = [ort_cuda.CUDA, ort_cuda.CPU]  # noqa: RUF012
    asked: list[Any] = []  # noqa: RUF012

    def __init__(self, *args: object, providers: list[Any], **kwargs: object) -> None:
        self.asked.append(providers[0])
        if self.errors:
            raise RuntimeError(self.errors.pop(0))
        self.session = onnxruntime_session(MODEL, providers=[ort_cuda.CPU])

    def get_providers(self) -> list[str]:
        return self.providers

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


onnxruntime_session = onnxruntime.InferenceSession


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel, the driver and a GPU, as far as one can see without computing."""
    monkeypatch.setattr(Session, "errors", [])
    monkeypatch.setattr(Session, "asked", [])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort_cuda.CUDA, ort_cuda.CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(ort_cuda, "built_for", lambda: 13)
    monkeypatch.setattr(ort_cuda, "ARENA", Arena())
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())


def no_driver(name: str) -> None:
    raise OSError(name)


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (
            no_driver,
            r"^no NVIDIA driver on this machine; install it, give a container --gpus all, or take device 'cpu'$",
        ),
        (lambda name: Driver(gpus=0), r"^the NVIDIA driver finds no GPU; see nvidia-smi, or take device 'cpu'$"),
        (lambda name: Driver(status=999), r"^the NVIDIA driver finds no GPU \(status 999\); see nvidia-smi, or"),
        (
            lambda name: Driver(version=12040),
            r"^the NVIDIA driver knows CUDA up to 12\.4, onnxruntime-gpu \S+ needs 13; update the driver, or install",
        ),
    ],
)
def test_a_machine_without_a_gpu_that_works(
    driver: Callable[[str], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", driver)
    with pytest.raises(BackendUnavailable, match=message):
        open_engine(MODEL, SPEC, device="cuda")
    told = pytest.warns(ort_cuda.OnCpu, match=f"^on the CPU, since on the GPU: {message[1:]}")
    lines = list[str]()
    building = Building(says=lines.append)
    with contextlib.nullcontext() if driver is no_driver else told:
        open_engine(MODEL, SPEC, device="auto", building=building).close()
    assert Session.asked == [ort_cuda.CPU]
    wanted = ["device auto: cpu, since no NVIDIA driver on this machine"]
    assert lines == (wanted if driver is no_driver else [])  # else the warning says it


@pytest.mark.usefixtures("with_gpu")
@pytest.mark.parametrize("own", [None, ":16:8"])
def test_what_cublas_sets_aside(own: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    name, ours = ort_cuda.WORKSPACE
    monkeypatch.setenv(name, own or "")
    if own is None:
        monkeypatch.delenv(name)
    open_engine(MODEL, SPEC, device="cuda").close()
    assert os.environ[name] == (own or ours)


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        (False, r"^onnxruntime \S+ here is built without CUDA; pip uninstall -y onnxruntime && pip install 'edged"),
        (
            True,
            r"^onnxruntime-gpu is installed, but another wheel .* over it; pip uninstall -y onnxruntime onnxruntime-",
        ),
    ],
)
def test_a_wheel_without_cuda(installed: bool, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if not installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.31.1"

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [ort_cuda.CPU])
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(BackendUnavailable, match=message):
        open_engine(MODEL, SPEC, device="cuda")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver())
    with pytest.warns(ort_cuda.OnCpu, match=f"^on the CPU, since on the GPU: {message[1:]}"):
        open_engine(MODEL, SPEC, device="auto").close()
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    open_engine(MODEL, SPEC, device="auto").close()


@pytest.mark.usefixtures("with_gpu")
def test_libraries_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "providers", [ort_cuda.CPU])
    message = r"libraries of onnxruntime-gpu are missing.*; pip install 'onnxruntime-gpu\[cuda,cudnn\]'$"
    with pytest.raises(BackendUnavailable, match=message):
        open_engine(MODEL, SPEC, device="cuda")
    with pytest.warns(ort_cuda.OnCpu, match=message), open_engine(MODEL, SPEC, device="auto"):
        assert Session.asked[-1] == ort_cuda.CPU


@pytest.mark.usefixtures("with_gpu")
def test_a_graph_whose_launches_cannot_be_captured() -> None:
    Session.errors.append("This session cannot use the graph capture feature as requested by the user")
    with pytest.warns(ort_cuda.NotCaptured, match=r"tiny\.onnx: not all of it runs on the GPU, so it is slower"):
        open_engine(MODEL, SPEC, device="cuda").close()
    assert [options["enable_cuda_graph"] for _, options in Session.asked] == ["1", "0"]


@pytest.mark.usefixtures("with_gpu")
def test_float32_is_no_tf32_and_float16_keeps_its_tensor_cores() -> None:
    Session.errors.append("This session cannot use the graph capture feature as requested by the user")
    with pytest.warns(ort_cuda.NotCaptured):
        open_engine(MODEL, SPEC, device="cuda", building=Building(precision="float32")).close()
    open_engine(MODEL, SPEC, device="cuda", building=Building(precision="float16")).close()
    assert [options.get("use_tf32") for _, options in Session.asked] == ["0", "0", None]


@pytest.mark.usefixtures("with_gpu")
def test_errors_of_a_session() -> None:
    Session.errors += ["Failed to allocate memory for requested buffer of size 3", "no such operator"]
    with pytest.raises(OutOfMemory, match=r"tiny\.onnx: out of memory on cuda; take a smaller picture, fewer at once"):
        open_engine(MODEL, SPEC, device="cuda")
    with pytest.raises(BundleError, match=r"tiny\.onnx: ONNX Runtime cannot load it \(no such operator\); export it"):
        open_engine(MODEL, SPEC, device="cuda")


@pytest.mark.usefixtures("with_gpu")
def test_weights_are_let_go_before_memory_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    Session.errors += ["Failed to allocate memory for requested buffer of size 3"]
    weights, found = {"w": object()}, list[int]()
    monkeypatch.setattr(ort_cuda, "give_weights", lambda model, options: weights)
    monkeypatch.setattr(ort_arena.ARENA, "exhausted", lambda: found.append(len(weights)))
    with pytest.raises(OutOfMemory):
        open_engine(MODEL, SPEC, device="cuda")
    assert found == [0]

    def full(model: Path, options: object) -> None:
        raise OutOfMemory("its weights do not fit")

    monkeypatch.setattr(ort_cuda, "give_weights", full)
    with pytest.raises(OutOfMemory, match=r"tiny\.onnx: its weights do not fit$"):
        open_engine(MODEL, SPEC, device="cuda")
    assert found == [0, 0]


@pytest.mark.usefixtures("with_gpu")
def test_the_dialect_of_the_device_is_opened_and_what_auto_took_is_said(tmp_path: Path) -> None:
    lines = list[str]()
    building = Building(says=lines.append)
    for device in ("auto", "cuda"):
        open_engine(
            tmp_path / "portable.onnx", SPEC, device=device, dialects={"cuda": MODEL}, building=building
        ).close()
    assert [provider for provider, _ in Session.asked] == [ort_cuda.CUDA] * 2
    assert lines == ["device auto: cuda, the best there is, and it works here"]  # nobody chose it the second time


@pytest.mark.usefixtures("with_gpu")
def test_engines_opened_together_leave_stdout_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.02, 0.06])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: time.sleep(next(seconds)))
    before = sys.stdout
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(open_engine, MODEL, SPEC, device="cuda") for _ in range(2)]:
            future.result().close()
    assert sys.stdout is before


def on_host() -> Engine:
    return HostEngine(SPEC, DeviceRun(onnxruntime.InferenceSession(MODEL, providers=[ort_cuda.CPU]), SPEC, "cpu"))


def test_the_main_thread_runs_engines_itself_and_one_thread_does_for_all_others() -> None:
    def ran() -> str:
        return ort_device.on_device(lambda: threading.current_thread().name)

    with ThreadPoolExecutor(2) as pool:
        assert {pool.submit(ran).result() for _ in range(4)} == {"edgediffusion-device_0"}
    assert ran() == threading.current_thread().name


def test_one_thing_at_a_time_happens_on_a_device() -> None:
    doing: list[int] = []

    def work() -> int:
        doing.append(1)
        time.sleep(0.002)
        return len(doing) - len([doing.pop()]) + 1

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(ort_device.on_device, work) for _ in range(4)]
        assert [ort_device.on_device(work) for _ in range(4)] == [1] * 4
        assert [other.result() for other in others] == [1] * 4


def test_constants_are_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[set[str]] = []
    send = ort_device._send

    def counted(buffers: Any, feeds: Any) -> None:
        before = dict(buffers.sent)
        send(buffers, feeds)
        sent.append({name for name, array in buffers.sent.items() if before.get(name) is not array})

    monkeypatch.setattr(ort_device, "_send", counted)
    with on_host() as engine:
        bound, other = engine.bind({"offset": OFFSET}), engine.bind({"offset": OFFSET + 1})
        for use in (bound, bound, other, bound):
            use({"x": np.ones((1, 2), np.float32)})
    assert sent == [{"x", "offset"}, {"x"}, {"x", "offset"}, {"x", "offset"}]


def test_more_shapes_than_are_kept() -> None:
    with on_host() as engine:
        for batch in (*range(1, ort_device.MAX_KEPT + 3), 1, ort_device.MAX_KEPT + 2):
            x = np.random.default_rng(batch).standard_normal((batch, 2)).astype(np.float32)
            wanted = x @ np.array([[1, 2, 3], [4, 5, 6]], np.float32)
            np.testing.assert_allclose(engine({"x": x, "offset": OFFSET})["y"], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", "tiny: out of memory on cuda; take a smaller picture"),
        ("Failed to allocate memory for requested buffer", "tiny: out of memory on cuda; take a smaller picture"),
        ("CUDNN failure 4", r"^tiny: ONNX Runtime failed on cuda \(CUDNN failure 4\)$"),
    ],
)
def test_a_run_that_fails(reason: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = DeviceRun(onnxruntime.InferenceSession(MODEL, providers=[ort_cuda.CPU]), SPEC, "cpu")
    run._device = "cuda"
    monkeypatch.setattr(run, "_empty", lambda *args: (_ for _ in ()).throw(RuntimeError(reason)))
    with pytest.raises(EngineError, match=message):
        run({"x": np.ones((1, 2), np.float32), "offset": OFFSET})


@pytest.mark.gpu
def test_out_of_memory_and_on(capfd: pytest.CaptureFixture[str]) -> None:
    with open_engine(probe.MODEL, probe.SPEC, device="cuda") as engine:
        with pytest.raises(EngineError, match="out of memory on cuda"):
            engine({"x": np.broadcast_to(np.float32(1), (1, 1, 200_000, 130_000))})
        x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
        np.testing.assert_array_equal(engine({"x": x})["y"], 2 * x + 1)
    assert capfd.readouterr() == ("", "")
