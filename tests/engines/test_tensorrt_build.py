"""Building, with a TensorRT that is none; what the real TensorRT-RTX builds is in tests/export/test_tensorrt_rtx.py."""

from __future__ import annotations

import _thread
import contextlib
import gc
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgediffusion.engines.errors import BackendUnavailable, BundleError, EngineError, OutOfMemory, UsageError
from edgediffusion.engines.profile import Profile
from edgediffusion.engines.spec import GraphSpec, TensorSpec
from edgediffusion.engines.tensorrt_build import BuildOptions, build_plan
from edgediffusion.engines.tensorrt_versions import VERSIONS, load

from .fake_tensorrt import FakeCuda, FakeTensorRT, lost_in_the_log
from .test_conformance import MODEL, SPEC

Install = Callable[..., FakeTensorRT]
STATIC, DYNAMIC = Profile.of({"batch": 2}), Profile.of({"batch": (1, 2, 4)})
INSTALLED = {"8": "8.6.0", "10": "10.13.2.6", "11": "11.4.0", "rtx": "1.7.1.116"}


def build(fake: FakeTensorRT, *profiles: Profile, precision: str = "float32", **options: Any) -> bytes:
    tensorrt = load(fake.__name__)
    return build_plan(tensorrt, MODEL, SPEC, profiles or [STATIC], precision, BuildOptions(**options))


def install(tensorrt: Install, version: str) -> FakeTensorRT:
    return tensorrt(INSTALLED[version], "tensorrt_rtx" if version == "rtx" else "tensorrt")


@pytest.mark.parametrize("version", INSTALLED)
def test_one_profile_of_fixed_sizes_makes_the_graph_static(version: str, tensorrt: Install) -> None:
    fake = install(tensorrt, version)
    assert b'"x": ["FLOAT", [2, 2]]' in build(fake)
    assert fake.config.profiles == []


@pytest.mark.parametrize("version", INSTALLED)
def test_several_profiles_are_those_of_one_engine(version: str, tensorrt: Install) -> None:
    fake = install(tensorrt, version)
    build(fake, STATIC, DYNAMIC)
    assert [profile.shapes for profile in fake.config.profiles] == [
        {"x": ((2, 2), (2, 2), (2, 2))},
        {"x": ((1, 2), (2, 2), (4, 2))},
    ]


def test_half_precision_wants_a_flag_where_types_are_a_hint(tensorrt: Install) -> None:
    for version, flags in (("8", ["TF32", "FP16"]), ("10", ["TF32"])):
        fake = install(tensorrt, version)
        build(fake, precision="float16")
        assert fake.config.flags == flags


@pytest.mark.parametrize("version", INSTALLED)
def test_float32_is_no_tf32(version: str, tensorrt: Install) -> None:
    fake = install(tensorrt, version)
    build(fake, precision="float32")
    assert fake.config.flags == []


def test_options_reach_the_builder(tensorrt: Install, tmp_path: Path) -> None:
    fake = install(tensorrt, "10")
    options: dict[str, Any] = {"weight_stripped": True, "refit": True, "version_compatible": True}
    cache = tmp_path / "new" / "timing.cache"
    build(fake, **options, optimization_level=0, workspace=1 << 20, hardware_compatible=True, timing_cache=cache)
    assert fake.config.flags == ["STRIP_PLAN", "REFIT", "VERSION_COMPATIBLE"]
    assert fake.config.builder_optimization_level == 0
    assert fake.config.limits == {"workspace": 1 << 20}
    assert fake.config.hardware_compatibility_level == "ampere+"
    assert cache.read_bytes() == b"of-0-builds"
    build(fake, timing_cache=cache)
    assert cache.read_bytes() == b"of-0-builds of-1-builds"
    rtx = install(tensorrt, "rtx")
    build(rtx, compute_capability=("8.9", "12.0"))
    assert rtx.config.capabilities == {0: 89, 1: 120}


def test_timings_of_other_builds_are_kept(tensorrt: Install, tmp_path: Path) -> None:
    fake, cache = install(tensorrt, "10"), tmp_path / "timing.cache"

    def another_ends(step: int) -> None:
        cache.write_bytes(b"of-another")

    fake.on_step = another_ends
    build(fake, timing_cache=cache)
    assert cache.read_bytes() == b"of-0-builds of-another"


def test_what_leaves_a_mark_on_the_plan() -> None:
    assert BuildOptions(timing_cache=Path("x"), compute_capability=("8.9",)).flags == ()
    assert BuildOptions(optimization_level=0, refit=True).flags == ("optimization_level=0", "refit")


@pytest.mark.parametrize(
    ("version", "options", "message"),
    [
        ("8", {"weight_stripped": True}, r"^TensorRT 8\.6 has no --weight-stripped; leave it out$"),
        (
            "8",
            {"refit": True, "version_compatible": True},
            r"^TensorRT 8\.6 takes no --version-compatible beside the other options; leave it out$",
        ),
        ("10", {"compute_capability": ("8.9",)}, "^TensorRT 10 has no --compute-capability; leave it out$"),
        ("rtx", {"hardware_compatible": True}, "^TensorRT-RTX has no --hardware-compatible; leave it out$"),
        ("rtx", {"compute_capability": ("9.0",)}, r"^--compute-capability 9\.0, known: 7\.5, 8\.9, 12\.0$"),
        ("10", {"optimization_level": 6}, "^--optimization-level 6, wanted 0 to 5$"),
    ],
)
def test_options_that_a_version_cannot_follow(
    version: str, options: dict[str, Any], message: str, tensorrt: Install
) -> None:
    with pytest.raises(UsageError, match=message):
        build(install(tensorrt, version), **options)


def test_every_version_says_what_it_has() -> None:
    options = set(vars(BuildOptions()))
    for version in VERSIONS.values():
        assert version.options < options


def test_a_build_that_fails(tensorrt: Install) -> None:
    fake = install(tensorrt, "10")
    fake.build_error = "Error Code 10:\n  Could not find any implementation"
    with pytest.raises(EngineError, match=r"^tiny: TensorRT cannot build it \(Error Code 10: Could not find any impl"):
        build(fake)
    fake.build_error = "Requested amount of GPU memory could not be allocated: OutOfMemory"
    with pytest.raises(OutOfMemory, match=r"^tiny: out of device memory while building .*; take a smaller --workspace"):
        build(fake)


def test_a_build_that_fails_on_a_full_gpu_and_does_not_say_why(tensorrt: Install, cuda: FakeCuda) -> None:
    fake = install(tensorrt, "8")
    fake.build_error = "1: [checkMacros.cpp::catchCudaError::203] Error Code 1: Cuda Runtime (invalid resource handle)"
    with pytest.raises(EngineError, match=r"^tiny: TensorRT cannot build it \(1: .* \(invalid resource handle\)\)$"):
        build(fake)
    cuda.free = 600 << 20
    with pytest.raises(OutOfMemory, match=r"^tiny: out of device memory while building \(1: .*; take a smaller --work"):
        build(fake)
    fake.build_error = "10: Could not find any implementation"
    with pytest.raises(EngineError, match=r"^tiny: TensorRT cannot build it \(10: Could not find any implement"):
        build(fake)


def test_the_lean_runtime_is_not_installed(tensorrt: Install) -> None:
    fake = install(tensorrt, "8")
    fake.build_error = "6: Internal Error (Unable to load library: libnvinfer_lean.so.8.6.0)"
    with pytest.raises(
        EngineError, match=r"^tiny: TensorRT's lean runtime is not installed \(6: .*\); pip install a t"
    ):
        build(fake, version_compatible=True)


def test_kernels_that_were_passed_over_for_want_of_memory(tensorrt: Install) -> None:
    fake = install(tensorrt, "8")
    fake.build_warning = (
        "Skipping tactic 0x0 due to exception autotuning: CUDA error 2 allocating 9-byte buffer: out of memory"
    )
    assert build(fake)
    fake.build_error = "10: Could not find any implementation for node {ForeignNode[x...y]}."
    with pytest.raises(OutOfMemory, match=r"^tiny: out of device memory while building \(Skipping .*; 10: Could not "):
        build(fake)
    fake.build_warning = "Skipping tactic 0x0 due to insufficient shared memory"
    with pytest.raises(EngineError, match=r"^tiny: TensorRT cannot build it \(10: Could not find any impl"):
        build(fake)


def test_a_workspace_that_is_too_small(tensorrt: Install) -> None:
    fake = install(tensorrt, "8")
    fake.build_error = (
        "4: Could not find any implementation for node {x} due to insufficient workspace. See verbose log"
    )
    with pytest.raises(
        EngineError, match=r"^tiny: no kernel does .* \(4: Could not .*\); take a larger --workspace, or l"
    ):
        build(fake, workspace=1 << 20)
    with pytest.raises(OutOfMemory, match=r"^tiny: out of device memory while building .*; take a smaller --workspace"):
        build(fake)  # with all of the device's memory for it


def test_a_graph_that_cannot_be_read(tensorrt: Install, tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match=r"tiny\.onnx: TensorRT 10 cannot read it \(node 3: no such operator\); exp"):
        build_plan(load_10(tensorrt), tmp_path / "tiny.onnx", SPEC, [STATIC], "float32", BuildOptions())


def load_10(tensorrt: Install) -> Any:
    return load(install(tensorrt, "10").__name__)


def test_a_graph_with_other_inputs(tensorrt: Install) -> None:
    other = GraphSpec("tiny", SPEC.inputs[:1], SPEC.outputs)
    with pytest.raises(BundleError, match=r"tiny\.onnx: inputs offset, x, expected x; export it again"):
        build_plan(load_10(tensorrt), MODEL, other, [STATIC], "float32", BuildOptions())
    other = GraphSpec("tiny", SPEC.inputs, (TensorSpec("z", "float32", (3,)),))
    with pytest.raises(BundleError, match=r"tiny\.onnx: outputs y, expected z; export it again"):
        build_plan(load_10(tensorrt), MODEL, other, [STATIC], "float32", BuildOptions())


def test_progress_rises_to_one(tensorrt: Install) -> None:
    seen: list[float] = []
    build_plan(load_10(tensorrt), MODEL, SPEC, [STATIC], "float32", BuildOptions(), seen.append)
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[5] == pytest.approx(0.25)
    assert seen[-1] == 1.0


def test_a_keyboard_interrupt_stops_the_build(tensorrt: Install) -> None:
    fake = install(tensorrt, "10")
    steps: list[int] = []

    def interrupt(step: int) -> None:
        steps.append(step)
        if step == 3:
            _thread.interrupt_main()
        if step > 3:
            time.sleep(0.05)  # as long as a step of a real build: the main thread looks every tenth of a second

    fake.on_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        build(fake)
    assert len(steps) < 20  # of 20: TensorRT was told to stop


@pytest.mark.parametrize("version", ["8", "10"])
def test_an_interrupt_is_not_lost_in_a_word_to_the_log(
    version: str, tensorrt: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install(tensorrt, version)
    monkeypatch.setattr(fake, "Builder", lost_in_the_log(fake.Builder))
    with pytest.raises(KeyboardInterrupt):
        build(fake)


def test_the_weights_stay_for_a_build_that_cannot_be_stopped(
    tensorrt: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, over, owners = install(tensorrt, "8"), threading.Event(), []
    parser_of = fake.OnnxParser

    def parser(network: Any, logger: Any) -> Any:
        made = parser_of(network, logger)
        owners.append(weakref.ref(made.parse))
        return made

    def goes_on(*arguments: Any) -> None:
        _thread.interrupt_main()
        over.wait(10)

    monkeypatch.setattr(fake, "OnnxParser", parser)
    monkeypatch.setattr(fake, "_build", goes_on)
    with contextlib.suppress(KeyboardInterrupt):
        build(fake)
    gc.collect()
    kept = owners[0]()
    over.set()
    assert kept is not None


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            "CUDA initialization failure with error: 35",
            r"TensorRT 10 does not start \(CUDA .*35\); does the NVIDIA driv",
        ),
        (
            "Assertion validateCaskKLibDigest(sha256sum) failed. ",  # with libnvinfer_builder_resource cut down
            r"not start \(Ass.* failed\.\); a file of it was altered: pip install --force-reinstall tensorrt==10\.",
        ),
    ],
)
def test_tensorrt_that_does_not_start(
    told: str, message: str, tensorrt: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install(tensorrt, "10")

    def nothing(logger: Any) -> None:
        logger.log(1, told)
        raise TypeError("factory function returned nullptr")

    monkeypatch.setattr(fake, "Builder", nothing)
    with pytest.raises(BackendUnavailable, match=message):
        build(fake)
    told = "CUDA initialization failure with error: 2. Please check your CUDA installation"
    message = r"^TensorRT 10 does not start: out of device memory \(CUDA init.*installation\); free some of it$"
    with pytest.raises(OutOfMemory, match=message):
        build(fake)


def test_tensorrt_that_does_not_start_and_does_not_say_why(
    tensorrt: Install, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = install(tensorrt, "8")
    monkeypatch.setattr(fake, "Builder", lambda: None)  # a TypeError, which the binding raises
    with pytest.raises(
        BackendUnavailable, match=r"^TensorRT 8\.6 does not start \(it does not say why\); does the NVI"
    ):
        build(fake)
    message = r"^TensorRT 8\.6 does not start: out of device memory \(it does not say why\); free some of it$"
    cuda.fail["cudaMemGetInfo"] = 2
    with pytest.raises(OutOfMemory, match=message):
        build(fake)
    cuda.fail["cudaMemGetInfo"] = 35
    with pytest.raises(BackendUnavailable, match="driver"):
        build(fake)
    cuda.free = 600 << 20
    with pytest.raises(OutOfMemory, match=message):
        build(fake)


def test_versions_that_nobody_described(tensorrt: Install) -> None:
    tensorrt("12.0.0")
    with pytest.raises(
        BackendUnavailable, match=r"tensorrt 12\.0\.0 is installed, known: TensorRT 8\.6, TensorRT 10, "
    ):
        load("tensorrt")
    with pytest.raises(
        BackendUnavailable, match=r"tensorrt_none cannot be imported \(.*\); pip install 'edgediffusion\["
    ):
        load("tensorrt_none")


def test_too_little_disk(tensorrt: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edgediffusion.engines.store import Store
    from edgediffusion.engines.tensorrt_store import Job, ensure

    job = Job.of(MODEL, SPEC, "float32")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 1 << 20))
    with pytest.raises(UsageError, match="engines: 1 MiB free, an engine of tiny takes about 16"):
        ensure(load_10(tensorrt), job, [STATIC], BuildOptions(), Store(tmp_path / "engines"))
