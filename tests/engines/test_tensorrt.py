"""Running plans, with a TensorRT and a GPU that are none."""

from __future__ import annotations

import gc
import hashlib
import shutil
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from edgediffusion.engines.base import Building, Engine
from edgediffusion.engines.errors import BackendUnavailable, EngineError, OutOfMemory, UsageError
from edgediffusion.engines.profile import Profile
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.store import NoEngine, Store
from edgediffusion.engines.tensorrt import MAX_KEPT
from edgediffusion.engines.tensorrt_build import BuildOptions, make_logger
from edgediffusion.engines.tensorrt_store import EngineBuilding, Job, ensure
from edgediffusion.engines.tensorrt_versions import load

from .fake_tensorrt import FakeContext, FakeCuda, FakeTensorRT, lost_in_the_log
from .test_conformance import MODEL, OFFSET, SPEC, X, Y

Install = Callable[..., FakeTensorRT]
FEEDS = {"x": X, "offset": OFFSET}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The tiny graph as the component of a bundle."""
    folder = tmp_path / "bundle" / "tiny"
    folder.mkdir(parents=True)
    for name in ("tiny.onnx", "tiny.bin"):
        shutil.copy(MODEL.parent / name, folder)
    return (folder / "tiny.onnx").rename(folder / "model.onnx")


@pytest.fixture
def fake(tensorrt: Install) -> FakeTensorRT:
    """One that knows the graph by its file's name in a bundle."""
    fake = tensorrt()
    fake.functions = {"model": fake.functions["tiny"]}
    return fake


def build(model: Path, *profiles: Profile, **options: Any) -> None:
    job = Job.of(model, SPEC, "float32")
    ensure(load("tensorrt"), job, profiles or [Profile.of({"batch": 3})], BuildOptions(**options), job.stores[-1])


def test_digests_that_are_known_are_not_taken_again(model: Path) -> None:
    taken = Job.of(model, SPEC, "float32").source
    weights = model.with_name("tiny.bin")
    told = Job.of(model, SPEC, "float32", {weights: "known"}).source
    assert (told.graph, told.weights) == (taken.graph, "known")
    assert taken.weights not in ("", "known")


def open_built(model: Path) -> Engine:
    return open_engine(model, SPEC, backend="tensorrt", building=Building(allowed=False))


def test_an_engine_is_built_for_the_shapes_that_come_and_kept(fake: FakeTensorRT, model: Path, tmp_path: Path) -> None:
    message = "building an engine of tiny for batch 3; it is kept, and takes minutes if it is large"
    told: list[tuple[str, float]] = []
    building = Building(reports=lambda name: lambda fraction: told.append((name, fraction)))
    with (
        open_engine(model, SPEC, backend="tensorrt", building=building) as engine,
        pytest.warns(EngineBuilding, match=message),
    ):
        np.testing.assert_array_equal(engine(FEEDS)["y"], Y)
    assert (told[0], told[-1]) == (("tiny", 0), ("tiny", 1))
    with warnings.catch_warnings(), open_built(model) as engine:
        warnings.simplefilter("error")
        np.testing.assert_array_equal(engine(FEEDS)["y"], Y)
    assert len(list(Store(tmp_path / "cache").entries())) == 1


def test_no_engine_and_none_to_be_built(fake: FakeTensorRT, model: Path) -> None:
    command = f"edgediffusion build {model.parent.parent} --backend tensorrt"
    with pytest.raises(NoEngine, match=f"^no tensorrt engine of tiny; {command}$"):
        open_built(model)


@pytest.mark.parametrize("what", ["weights", "graph", "driver", "version"])
def test_an_engine_of_something_else_is_never_loaded(
    what: str, fake: FakeTensorRT, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(model)
    if what == "weights":
        (model.parent / "tiny.bin").write_bytes(bytes(24))
    elif what == "graph":
        model.write_bytes(model.read_bytes() + b"\x2a\x00")  # an empty name of the domain
    elif what == "driver":
        monkeypatch.setattr("edgediffusion.engines.cuda._driver", lambda: "580.65.06")
    else:
        fake.__version__ = "10.14.1"
    with pytest.raises(NoEngine, match=f"that fits: the nearest is for {what} .*, here .*; edgediffusion build"):
        open_built(model)
    with pytest.warns(EngineBuilding, match=f"nearest is for {what} .*; building another"):
        open_engine(model, SPEC, backend="tensorrt")


def test_another_gpu(fake: FakeTensorRT, cuda: FakeCuda, model: Path) -> None:
    build(model)
    properties = cuda._GetDeviceProperties(0)
    properties.name, properties.minor = b"NVIDIA GeForce RTX 4090", 9
    cuda._GetDeviceProperties = lambda device: properties  # type: ignore[method-assign]
    with pytest.raises(NoEngine, match=r"for GPU NVIDIA H100, here NVIDIA GeForce RTX 4090; compute capability 9\.0, "):
        open_built(model)


def test_a_truncated_plan_is_not_loaded(fake: FakeTensorRT, model: Path, tmp_path: Path) -> None:
    build(model)
    (plan,) = (tmp_path / "cache").glob("*.plan")
    plan.write_bytes(plan.read_bytes()[:-1])
    with pytest.raises(EngineError, match=r"truncated, .* bytes, expected .*; build it again"):
        open_built(model)
    with pytest.warns(EngineBuilding, match="truncated"):
        engine = open_engine(model, SPEC, backend="tensorrt")
    assert list(Store(tmp_path / "cache").entries()) == []
    with pytest.warns(EngineBuilding, match="building an engine of tiny for batch 3"):
        np.testing.assert_array_equal(engine(FEEDS)["y"], Y)


def test_shapes_outside_every_profile(fake: FakeTensorRT, model: Path) -> None:
    build(model, Profile.of({"batch": 1}), Profile.of({"batch": (2, 2, 4)}))
    with open_built(model) as engine:
        message = (
            r"tiny: no engine for batch 5; there are: batch 1; batch 2-4 \(best 2\); edgediffusion build .* --shapes"
        )
        with pytest.raises(NoEngine, match=message):
            engine({"x": np.ones((5, 2), np.float32), "offset": OFFSET})
        for batch in (1, 3, 1, 2, 3):
            np.testing.assert_array_equal(engine({"x": X[:batch], "offset": OFFSET})["y"], Y[:batch])


def test_the_launches_of_a_shape_are_captured_once(fake: FakeTensorRT, cuda: FakeCuda, model: Path) -> None:
    build(model)
    with open_built(model) as engine:
        for i in range(5):
            np.testing.assert_array_equal(
                engine({"x": X + i, "offset": OFFSET})["y"] - Y, np.full((3, 3), [5, 7, 9]) * i
            )
    assert cuda.calls.count("cudaStreamBeginCapture") == 1
    assert cuda.calls.count("cudaGraphLaunch") == 4


def test_launches_that_cannot_be_captured_are_run_as_they_are(fake: FakeTensorRT, cuda: FakeCuda, model: Path) -> None:
    build(model)
    with open_built(model) as engine:
        engine(FEEDS)
        cuda.fail["cudaGraphInstantiate"] = 900
        for _ in range(3):
            np.testing.assert_array_equal(engine(FEEDS)["y"], Y)
    assert cuda.calls.count("cudaStreamBeginCapture") == 1
    assert cuda.calls.count("cudaGraphLaunch") == 0


def test_engines_share_what_lies_between_layers(fake: FakeTensorRT, cuda: FakeCuda, model: Path) -> None:
    build(model)
    with open_built(model) as first, open_built(model) as second:
        for engine in (first, second) * 2:
            np.testing.assert_array_equal(engine(FEEDS)["y"], Y)
    assert list(cuda.device.values()).count(1000) == 1


def test_a_larger_engine_takes_the_place_of_what_was_shared(
    fake: FakeTensorRT, cuda: FakeCuda, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(model)
    with open_built(model) as first, open_built(model) as second:
        for _ in range(3):
            first(FEEDS)
        monkeypatch.setattr("edgediffusion.engines.tensorrt_versions.TensorRT.scratch_size", lambda self, engine: 2000)
        for engine in (second, first, second, first):
            np.testing.assert_array_equal(engine(FEEDS)["y"], Y)
    assert sorted(size for size in cuda.device.values() if size >= 1000) == [2000]


def test_what_was_shared_goes_before_something_larger_comes(
    fake: FakeTensorRT, cuda: FakeCuda, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(model)
    with open_built(model) as first, open_built(model) as second:
        first(FEEDS)
        size = "edgediffusion.engines.tensorrt_versions.TensorRT.scratch_size"
        monkeypatch.setattr(size, lambda self, engine: 2000)
        second(FEEDS)
        assert [size for size in cuda.device.values() if size >= 1000] == [2000]
    assert cuda.peak < 3000


def test_launches_are_captured_again_once_their_context_took_other_shapes(
    fake: FakeTensorRT, cuda: FakeCuda, model: Path
) -> None:
    build(model, Profile.of({"batch": (1, 3, 3)}))
    with open_built(model) as engine:
        for batch in (3, 3, 3, 1, 3, 3, 3):
            np.testing.assert_array_equal(engine({"x": X[:batch], "offset": OFFSET})["y"], Y[:batch])
        assert cuda.calls.count("cudaStreamBeginCapture") == 2
        assert cuda.calls.count("cudaGraphLaunch") == 4
        cuda.fail["cudaMalloc"] = 2
        with pytest.raises(OutOfMemory):  # after its shapes were set
            engine({"x": X[:2], "offset": OFFSET})
        np.testing.assert_array_equal(engine(FEEDS)["y"], Y)


@pytest.mark.parametrize(
    "step", ["set_input_shape", "set_tensor_address", "set_optimization_profile_async", "execute_async_v3"]
)
def test_what_tensorrt_does_not_do_is_told(
    step: str, fake: FakeTensorRT, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(model, Profile.of({"batch": 1}), Profile.of({"batch": 3}))
    logger = make_logger(fake)
    monkeypatch.setattr("edgediffusion.engines.tensorrt.make_logger", lambda trt: logger)
    works, told = getattr(FakeContext, step), ""

    def fails(self: FakeContext, *arguments: Any) -> bool:
        if not told:
            return bool(works(self, *arguments))
        logger.log(1, told)
        return False

    monkeypatch.setattr(FakeContext, step, fails)
    with open_built(model) as engine:
        told = "Error Code 1: Cuda Runtime (out of memory)"
        with pytest.raises(OutOfMemory, match=r"^tiny: out of device memory \(.*\); take a smaller --size or --batch"):
            engine(FEEDS)
        told = "Error Code 3: API Usage Error"
        with pytest.raises(EngineError, match=r"^tiny: TensorRT failed \(Error Code 3: API Usage Error\)$"):
            engine(FEEDS)
        told = ""
        np.testing.assert_array_equal(engine(FEEDS)["y"], Y)


def test_constants_are_copied_once(fake: FakeTensorRT, cuda: FakeCuda, model: Path) -> None:
    build(model)
    with open_built(model) as engine, engine.bind({"offset": OFFSET}) as bound:
        bound({"x": X})
        copies = cuda.calls.count("cudaMemcpyAsync")
        np.testing.assert_array_equal(bound({"x": X})["y"], Y)
    assert cuda.calls.count("cudaMemcpyAsync") - copies == 2  # x there, y back


def test_copies_out_overlap_what_is_computed_next(fake: FakeTensorRT, cuda: FakeCuda, model: Path) -> None:
    build(model)
    with open_built(model) as engine, engine.bind({"offset": OFFSET}) as bound:
        results = bound.each({"x": X + i} for i in range(5))
        np.testing.assert_array_equal(next(results)["y"], Y)
        compute, copies = range(2)
        assert len(cuda.streams[compute]) > cuda.done[compute]  # the second, while the first is looked at
        assert len(cuda.streams[copies]) > cuda.done[copies]
        rest = [outputs["y"] - Y for outputs in results]
        np.testing.assert_array_equal(rest, [np.full((3, 3), [5, 7, 9]) * i for i in range(1, 5)])
        taken = dict(cuda.device)
        assert len(list(bound.each([{"x": X}, {"x": X}]))) == 2
        assert cuda.device == taken  # the places are kept


def test_one_after_the_other_in_different_shapes(fake: FakeTensorRT, model: Path) -> None:
    build(model, Profile.of({"batch": (1, 3, 3)}))
    with open_built(model) as engine:
        shown = [outputs["y"] for outputs in engine.each({"x": X[:n], "offset": OFFSET} for n in (3, 1, 1, 2, 3))]
        for n, y in zip((3, 1, 1, 2, 3), shown, strict=True):
            np.testing.assert_array_equal(y, Y[:n])
    with pytest.raises(UsageError, match="tiny: this engine is closed; open it again"):
        next(engine.each([FEEDS]))


@pytest.mark.parametrize(("free", "kept"), [(30, 10), (75, 50), (10, 0)])
def test_weights_that_do_not_fit_are_streamed(
    free: int, kept: int, fake: FakeTensorRT, cuda: FakeCuda, model: Path
) -> None:
    build(model, weight_streaming=True)
    assert "WEIGHT_STREAMING" in fake.config.flags
    cuda.free = (free << 30) + 1000  # of 80 GiB, for 50 of weights
    with open_built(model) as engine:
        assert fake.engine.weight_streaming_budget_v2 == kept << 30
        np.testing.assert_array_equal(engine(FEEDS)["y"], Y)


def test_an_engine_larger_than_half_the_gpu_may_stream(
    fake: FakeTensorRT, model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Job, "weights_bytes", 41 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1 << 40))
    with open_engine(model, SPEC, backend="tensorrt") as engine, pytest.warns(EngineBuilding):
        np.testing.assert_array_equal(engine(FEEDS)["y"], Y)
    (entry,) = Store(tmp_path / "cache").entries()
    assert entry.recipe.flags == ("weight_streaming",)


def test_memory_is_bounded_and_given_back(fake: FakeTensorRT, cuda: FakeCuda, model: Path) -> None:
    build(model, Profile.of({"batch": (1, 1, 64)}))
    with open_built(model) as engine:
        for batch in range(1, MAX_KEPT + 5):
            engine({"x": np.ones((batch, 2), np.float32), "offset": OFFSET})
        assert len(cuda.device) == 3 * MAX_KEPT + 1
    del engine
    assert list(cuda.device.values()) == [1000]


def test_out_of_memory_while_running(fake: FakeTensorRT, cuda: FakeCuda, model: Path) -> None:
    build(model)
    with open_built(model) as engine:
        cuda.fail["cudaMalloc"] = 2
        message = r"^CUDA: Malloc failed with cudaErrorMemoryAllocation; take a smaller --size or --batch-size$"
        with pytest.raises(OutOfMemory, match=message):
            engine(FEEDS)
        np.testing.assert_array_equal(engine(FEEDS)["y"], Y)


@pytest.mark.parametrize("step", ["create_execution_context", "execute_async_v3"])
def test_a_closed_engine_is_freed_though_an_error_is_kept(
    step: str, fake: FakeTensorRT, cuda: FakeCuda, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(model)
    monkeypatch.setattr(FakeContext, "execute_async_v3", lambda self, stream: False)
    with open_built(model) as engine:
        if step == "create_execution_context":
            fake.engine.create_execution_context = lambda strategy: None
        with pytest.raises(EngineError) as kept:
            engine(FEEDS)
        plan, fake.engine = weakref.ref(fake.engine), None
    gc.collect()  # a stand-in refers to itself
    assert plan() is None
    assert kept.tb is not None


def test_an_engine_runs_on_after_one_that_is_bound_to_it_was_closed(fake: FakeTensorRT, model: Path) -> None:
    build(model)
    with open_built(model) as engine:
        with engine.bind({"offset": OFFSET}) as bound:
            np.testing.assert_array_equal(bound({"x": X})["y"], Y)
        np.testing.assert_array_equal(engine(FEEDS)["y"], Y)


def test_an_interrupt_is_not_lost_while_a_plan_is_loaded(
    fake: FakeTensorRT, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(model)
    with open_built(model) as engine:
        fake.engine.create_execution_context = lost_in_the_log(fake.engine.create_execution_context)
        with pytest.raises(KeyboardInterrupt):
            engine(FEEDS)
    monkeypatch.setattr(fake, "Runtime", lost_in_the_log(fake.Runtime))
    with pytest.raises(KeyboardInterrupt):
        open_built(model)


def test_a_plan_without_weights_takes_those_of_the_bundle(fake: FakeTensorRT, model: Path) -> None:
    build(model, weight_stripped=True)
    with open_built(model) as engine:
        np.testing.assert_array_equal(engine(FEEDS)["y"], Y)


@pytest.mark.parametrize("version", ["8.6.0", "11.4.0"])
def test_other_versions(version: str, tensorrt: Install, model: Path) -> None:
    fake = tensorrt(version)
    fake.functions = {"model": fake.functions["tiny"]}
    build(model)
    with open_built(model) as engine:
        for _ in range(3):
            np.testing.assert_array_equal(engine(FEEDS)["y"], Y)


def test_a_plan_that_tensorrt_refuses(fake: FakeTensorRT, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(model)
    monkeypatch.setattr(fake, "Runtime", lambda logger: type("R", (), {"deserialize_cuda_engine": lambda s, p: None})())
    with pytest.raises(EngineError, match=r"\.plan: TensorRT 10 refuses it \(\); "):
        open_built(model)


def test_a_plan_of_another_graph(fake: FakeTensorRT, model: Path, tmp_path: Path) -> None:
    build(model)
    (entry,) = Store(tmp_path / "cache").entries()
    plan = entry.read().replace(b'"offset"', b'"of"')
    built = replace(entry.built, bytes=len(plan), sha256=hashlib.sha256(plan).hexdigest())
    Store(tmp_path / "cache").add(entry.recipe, built, plan)
    message = r"\.plan: inputs and outputs .*, expected .*; delete it and build another$"
    with pytest.raises(EngineError, match=message):
        open_built(model)


def test_a_plan_that_does_not_fit(fake: FakeTensorRT, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(model)

    def runtime(logger: Any) -> Any:
        logger.log(1, "Requested amount of GPU memory (9 bytes) could not be allocated: OutOfMemory")
        return type("R", (), {"deserialize_cuda_engine": lambda self, plan: None})()

    monkeypatch.setattr(fake, "Runtime", runtime)
    with pytest.raises(OutOfMemory, match=r"\.plan: out of device memory while loading \(.*\); free some of it"):
        open_built(model)


@pytest.mark.parametrize("taken_before", ["the plan is loaded", "a context is made"])
def test_with_nothing_free_tensorrt_is_not_asked(
    taken_before: str, fake: FakeTensorRT, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8.6 ends the process."""
    build(model)
    engine = open_built(model) if taken_before == "a context is made" else None
    with monkeypatch.context() as full:
        full.setattr("edgediffusion.engines.tensorrt.free_memory", lambda: 3 << 20)
        full.setattr(fake, "Runtime", Mock(side_effect=AssertionError))
        if engine is not None:
            full.setattr(fake.engine, "create_execution_context", Mock(side_effect=AssertionError))
        with pytest.raises(OutOfMemory, match=r"\.plan: out of device memory, 3 MiB are free; free some of it$"):
            open_built(model) if engine is None else engine(FEEDS)
    np.testing.assert_array_equal((engine or open_built(model))(FEEDS)["y"], Y)


def test_no_gpu_and_no_driver(fake: FakeTensorRT, cuda: FakeCuda, model: Path) -> None:
    cuda.fail["cudaGetDeviceCount"] = 35
    message = (
        r"^no NVIDIA GPU that works \(CUDA: GetDeviceCount failed with cudaErrorInsufficientDriver\); install or upd"
    )
    with pytest.raises(BackendUnavailable, match=message):
        open_engine(model, SPEC, backend="tensorrt")
    cuda.devices = 0
    with pytest.raises(BackendUnavailable, match=r"^no NVIDIA GPU on this machine; take --backend ort --device cpu$"):
        open_engine(model, SPEC, backend="tensorrt")
