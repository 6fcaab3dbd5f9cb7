"""`edgediffusion build` and `engines`, with a TensorRT and a GPU that are none, over the built-in bundle."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.store import Store
from edgediffusion.runtime import engine_commands
from edgediffusion.runtime.cli import main, report_checks
from edgediffusion.runtime.golden import Check
from edgediffusion.runtime.pipeline import BUILTIN

from ..engines.conftest import cuda, tensorrt
from ..engines.fake_tensorrt import FakeCuda, FakeTensorRT
from .test_progress import Terminal

__all__ = ["cuda", "tensorrt"]  # fixtures
Install = Callable[..., FakeTensorRT]


@pytest.fixture
def fake(tensorrt: Install, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    monkeypatch.setattr(engine_commands, "free_memory", lambda: 64 << 30)
    return tensorrt()


def build(*arguments: str) -> int:
    return main(["build", str(BUILTIN), *arguments])


def profiles(component: str) -> list[list[dict[str, list[int]]]]:
    entries = [entry for entry in Store.of_user().entries() if entry.recipe.source.component == component]
    return [[profile.to_record() for profile in entry.recipe.profiles] for entry in entries]


def test_engines_of_all_that_drawing_runs(fake: FakeTensorRT, capsys: pytest.CaptureFixture[str]) -> None:
    assert build() == 0
    plans = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(plan.name.split("-")[0] for plan in plans) == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert all(plan.exists() for plan in plans)
    assert profiles("text_encoder") == [[{"batch": [2, 2, 2]}]]
    assert profiles("unet") == [
        [{"batch": [2, 2, 2], "height": [16, 16, 16], "sequence_length": [77, 77, 77], "width": [16, 16, 16]}]
    ]
    assert profiles("vae_decoder") == [[{"batch": [1, 1, 1], "height": [16, 16, 16], "width": [16, 16, 16]}]]
    assert profiles("vae_encoder") == [[{"batch": [1, 1, 1], "height": [128, 128, 128], "width": [128, 128, 128]}]]


def test_several_shapes_are_profiles_of_one_engine(fake: FakeTensorRT) -> None:
    assert build("--component", "unet", "--shapes", "128x128,192x64", "--batch", "1-4") == 0
    batch = [2, 2, 8]
    assert profiles("unet") == [
        [
            {"batch": batch, "height": [16, 16, 16], "sequence_length": [77, 77, 77], "width": [16, 16, 16]},
            {"batch": batch, "height": [8, 8, 8], "sequence_length": [77, 77, 77], "width": [24, 24, 24]},
        ]
    ]


def test_dynamic_is_any_size_between(fake: FakeTensorRT) -> None:
    assert build("--component", "unet", "--shapes", "128x128,192x64", "--batch", "2", "--dynamic") == 0
    sizes = {"batch": [4, 4, 4], "height": [8, 16, 16], "sequence_length": [77, 77, 77], "width": [16, 16, 24]}
    assert profiles("unet") == [[sizes]]


def test_prompts_of_several_chunks(fake: FakeTensorRT) -> None:
    assert build("--component", "unet", "--prompt-chunks", "3") == 0
    ((sizes,),) = profiles("unet")
    assert sizes["sequence_length"] == [77, 77, 231]


def test_what_is_there_is_not_built_again(fake: FakeTensorRT, capsys: pytest.CaptureFixture[str]) -> None:
    build("--component", "unet")
    fake.build_error = "built again"
    assert build("--component", "unet") == 0
    assert build("--component", "unet", "--workspace", "64") == 2
    assert "unet: TensorRT cannot build it (built again)" in capsys.readouterr().err


def test_into_the_bundle_and_beside_one_another(fake: FakeTensorRT, tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(BUILTIN)
    copy = tmp_path / "copy"
    copy.mkdir()
    for item in BUILTIN.iterdir():
        (copy / item.name).symlink_to(item)
    assert main(["build", str(copy), "--in-bundle", "--jobs", "2", "--timing-cache"]) == 0
    assert len(list((copy / "engines").glob("*.plan"))) == 4
    (cache,) = Store.of_user().folder.glob("*.timing")
    assert cache.name == "tensorrt-10.13.2.6-NVIDIA_H100-9.0-580.95.05.timing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "ort"], "unknown backend that builds engines 'ort'; known: tensorrt, tensorrt_rtx"),
        (["--component", "ear"], "unknown component 'ear'; known: text_encoder, unet, vae_decoder, vae_encoder"),
        (["--shapes", "128"], "argument --shapes: '128', wanted WIDTHxHEIGHT between commas, such as 512x512,768x512"),
        (["--shapes", "100x128"], "--shapes 100x128: width and height must be multiples of 8"),
        (["--batch", "4-1"], "argument --batch: '4-1', wanted a number of pictures, or two such as 1-4"),
        (["--workspace", "1GB"], "argument --workspace: '1GB', wanted a number of MiB"),
        (["--jobs", "0"], "--jobs 0, wanted 1 or more"),
        (["--compute-capability", "8.9"], "TensorRT 10 has no --compute-capability; leave it out"),
    ],
)
def test_arguments_that_cannot_be_used(
    arguments: list[str], message: str, fake: FakeTensorRT, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(*arguments) == 2
    assert f"edgediffusion: error: {message}" in capsys.readouterr().err


def test_too_little_memory(
    fake: FakeTensorRT, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_commands, "free_memory", lambda: 1 << 20)
    assert build() == 2
    assert "MiB of memory, 1 are free; build fewer at a time with --jobs or --component" in capsys.readouterr().err


def test_the_builder_of_8_takes_memory_whatever_it_builds(
    fake: FakeTensorRT, tensorrt: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_commands, "free_memory", lambda: 2 << 30)
    assert build("--component", "vae_encoder") == 0
    tensorrt("8.6.0")
    assert build("--component", "vae_encoder") == 2
    assert "building takes about 34" in capsys.readouterr().err


def test_a_build_that_cannot_be_stopped_is_left_behind(
    tensorrt: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_commands, "free_memory", lambda: 64 << 30)
    fake, over, ended = tensorrt("8.6.0"), threading.Event(), threading.Event()

    def parser(*arguments: Any) -> Any:
        signal.siginterrupt(signal.SIGINT, False)  # as NVRTC 12 does when it compiles
        os.kill(os.getpid(), signal.SIGINT)
        over.wait(10)
        ended.set()
        raise BundleError("not to be seen")

    monkeypatch.setattr(fake, "OnnxParser", parser)
    try:
        assert build("--component", "vae_encoder") == 130
        assert not ended.is_set()
        assert any(thread.daemon for thread in threading.enumerate())  # for whose sake `script` leaves at once
    finally:
        signal.siginterrupt(signal.SIGINT, True)
        over.set()
    assert capsys.readouterr().err == "edgediffusion: interrupted\n"


def test_engines_are_listed(fake: FakeTensorRT, capsys: pytest.CaptureFixture[str]) -> None:
    build("--component", "unet")
    capsys.readouterr()
    assert main(["engines", "list"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "unet",
        "batch 2, height 16, sequence_length 77, width 16",
        "tensorrt 10.13.2.6",
        "NVIDIA H100, 9.0",
        "fits",
    ):
        assert word in shown
    assert main(["engines", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["recipe"]["target"]["gpu"] == "NVIDIA H100"


def test_engines_are_verified_and_pruned(
    fake: FakeTensorRT, cuda: FakeCuda, capsys: pytest.CaptureFixture[str]
) -> None:
    build("--component", "unet")
    build("--component", "text_encoder")
    store = Store.of_user()
    text_encoder, unet = store.entries()
    (store.folder / f"{unet.recipe.name}.1234.plan.partial").touch()
    capsys.readouterr()
    assert main(["engines", "verify"]) == 0
    assert capsys.readouterr().out.count("sound, and for this machine") == 2
    unet.plan.write_bytes(b"")
    assert main(["engines", "verify"]) == 1
    assert f"{unet.plan.name}: {unet.plan}: truncated" in capsys.readouterr().out
    assert main(["engines", "prune"]) == 0
    assert list(store.entries()) == [text_encoder]
    assert {path.suffix for path in store.folder.iterdir()} == {".lock", ".plan", ".json"}
    cuda.devices = 0
    assert main(["engines", "verify"]) == 0
    assert "whether it fits here is not known: no NVIDIA GPU" in capsys.readouterr().out
    main(["engines", "prune"])
    assert list(store.entries()) == [text_encoder]
    cuda.devices, fake.__version__ = 1, "10.14.0"
    assert main(["engines", "verify"]) == 1
    assert "version 10.13.2.6, here 10.14.0" in capsys.readouterr().out
    main(["engines", "prune"])
    assert list(store.entries()) == []


def test_engines_are_moved(fake: FakeTensorRT, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    build("--component", "unet")
    archive = str(tmp_path / "engines.tar")
    assert main(["engines", "export", archive]) == 0
    assert f"1 engines in {archive}" in capsys.readouterr().out
    assert main(["engines", "prune", "--all"]) == 0
    assert list(Store.of_user().entries()) == []
    assert main(["engines", "import", archive]) == 0
    assert len(list(Store.of_user().entries())) == 1
    assert main(["engines", "import"]) == 2
    assert "engines import: a FILE is wanted" in capsys.readouterr().err
    assert main(["engines", "list", archive]) == 2
    assert "engines list: a FILE is not wanted" in capsys.readouterr().err


def test_a_provider_of_onnx_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a red apple", "--provider", "nv_tensorrt_rtx"]) == 2
    assert "here is built without NvTensorRTRTXExecutionProvider; install a wheel" in capsys.readouterr().err


def test_no_build(fake: FakeTensorRT, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a red apple", "--backend", "tensorrt", "--no-build"]) == 2
    message = f"no tensorrt engine of unet; edgediffusion build {BUILTIN} --backend tensorrt"
    assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("default::edgediffusion.engines.tensorrt_store.EngineBuilding")
def test_generate_shows_what_it_builds(fake: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    fake.build_error = "no memory for that"
    assert main(["generate", "a red apple", "--backend", "tensorrt"]) == 2
    for word in ("building an engine of text_encoder", "building text_encoder", "no memory for that"):
        assert word in terminal.getvalue()


def test_a_report_says_what_it_was_made_on(fake: FakeTensorRT, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(bundle=BUILTIN, backend="tensorrt", device="auto", build=True, trust=None, json=False)
    check = Check(component="unet", output="out_sample", error=1e-6, tolerance=1e-4, sample="golden")
    assert report_checks(options, lambda bundle: [check]) == 0
    shown = capsys.readouterr().out
    for word in ("tensorrt", "10.13.2.6", "NVIDIA H100", "9.0", "580.95.05", "unet", "agrees"):
        assert word in shown
