"""Both ends of the protocol, with a contender that only counts; and each real worker's file once, where it can run."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgediffusion.bench import contenders as module
from edgediffusion.bench.cases.roofline import write_operator
from edgediffusion.bench.contenders import Contender, find, interpreters, missing
from edgediffusion.bench.feeds import random_feeds
from edgediffusion.bench.schema import OURS
from edgediffusion.bench.workers import PEERS, serve
from edgediffusion.engines.errors import EdgeDiffusionError, UnknownName, UsageError
from edgediffusion.runtime.manifest import Manifest
from edgediffusion.runtime.pipeline import BUILTIN

REQUEST: dict[str, Any] = {
    "backend": "ort",
    "device": "cpu",
    "build": True,
    "dtype": "float32",
    "family": "sd",
    "threads": 1,
    "providers": ["CPUExecutionProvider"],
}
COUNTING = """import time
time.sleep(0.1)
import sys
print("what a library prints")
def load(request):
    def double(feeds, *, times=2):
        return lambda: {"y": feeds["x"] * times}
    def fail(feeds):
        raise ValueError("no such thing\\nand more")
    def end(feeds):
        sys.exit("gone")
    return {"double": double, "fail": fail, "end": end}
def versions():
    return {"counting": "1"}
"""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Contender:
    (tmp_path / "counting.py").write_text(COUNTING)
    (tmp_path / "serve.py").symlink_to(serve.__file__)
    monkeypatch.setattr(module, "WORKERS", tmp_path)
    return Contender(name="counting", python=sys.executable, worker="counting", request={})


def test_load_prepare_run_save(counting: Contender, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.arange(3))
    with counting.start() as worker:
        loaded = worker.ask("load", **counting.request)
        assert loaded["seconds"] > 0.1  # imports included
        assert (loaded["calls"], loaded["versions"]) == (["double", "end", "fail"], {"counting": "1"})
        worker.ask("prepare", call="double", feeds=str(tmp_path / "in.npz"), parameters={"times": 3})
        assert len(worker.run(2)) == 2
        worker.ask("save", path=str(tmp_path / "out.npz"))
        assert worker.ask("memory")["peak_bytes"] > 1e6
    with np.load(tmp_path / "out.npz") as outputs:
        assert outputs["y"].tolist() == [0, 3, 6]


def test_what_goes_wrong_is_one_line(counting: Contender) -> None:
    with counting.start() as worker:
        worker.ask("load")
        with pytest.raises(EdgeDiffusionError, match=r"^counting: ValueError: no such thing$"):
            worker.ask("prepare", call="fail", feeds=None, parameters={})
        with pytest.raises(EdgeDiffusionError, match=r"^counting: its process ended with status 1: gone$"):
            worker.ask("prepare", call="end", feeds=None, parameters={})
        with pytest.raises(EdgeDiffusionError, match="its process ended with status 1: gone"):
            worker.run(1)


def test_an_error_without_words() -> None:
    def load(request: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
        raise RuntimeError

    answers = io.StringIO()
    serve.serve(serve.Session(lambda: SimpleNamespace(load=load)), ['{"do": "load"}\n'], answers)
    assert json.loads(answers.getvalue()) == {"error": "RuntimeError: it says nothing"}


def test_who_is_not_installed_is_skipped_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "missing", lambda python, modules: ["optimum"] if "optimum" in modules[0] else [])
    sources = {"bundle": Path("b"), "checkpoint": Path("c")}
    pythons = interpreters([], list(PEERS))
    found, skipped = find(list(PEERS), pythons, REQUEST, sources)
    assert [contender.name for contender in found] == [OURS, "diffusers", "torch-compile", "openvino"]
    assert [contender.request["source"] for contender in found] == ["b", "c", "c", "b"]
    assert found[2].request["compile"] is True
    assert skipped == [f"optimum: skipped, {sys.executable} has no optimum; see --python"]


def test_interpreters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.touch()
    monkeypatch.setenv("EDGEDIFFUSION_TORCH_COMPILE", "of the environment")
    assert interpreters([f"optimum={python}"], ["optimum", "torch-compile", "openvino"]) == {
        "optimum": str(python),
        "torch-compile": "of the environment",
        "openvino": sys.executable,
    }
    with pytest.raises(
        UnknownName, match="unknown peer 'optimism'; known: diffusers, openvino, optimum, torch-compile"
    ):
        interpreters(["optimism=/bin/python"], [])
    with pytest.raises(UsageError, match=r"--python optimum=/no/python: there is no /no/python; wanted NAME=PATH"):
        interpreters(["optimum=/no/python"], [])


def test_missing_modules() -> None:
    assert missing(sys.executable, ["json", "not_there", "not.there.either"]) == ["not_there", "not.there.either"]


def test_our_own_worker(tmp_path: Path) -> None:
    """Its graphs with and without constants, a picture, its time line."""
    (ours,), _ = find([], {}, REQUEST, {"bundle": BUILTIN})
    spec = Manifest.read(BUILTIN).graphs["unet"].spec
    feeds: dict[str, Any] = random_feeds(spec, {"batch": 2, "height": 8, "width": 8, "sequence_length": 77})
    np.savez(tmp_path / "unet.npz", **feeds)
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 128, 128, 3), np.uint8))
    np.savez(tmp_path / "x.npz", x0=np.ones((2, 2), np.float32), x1=np.ones((2, 2), np.float32))
    picture = {"prompt": "a red apple", "seed": 0, "steps": 2, "guidance_scale": 5.0}
    bare = {"model": str(write_operator(tmp_path / "matmul.onnx", "MatMul", "float32", [(2, 2), (2, 2)]))}
    with ours.start() as worker:
        calls = worker.ask("load", **ours.request)["calls"]
        assert {"unet", "vae_decoder", "text_encoder", "picture", "timeline", "bare"} <= set(calls)
        outputs = {}
        for call, file, parameters in (
            ("unet", "unet.npz", {}),
            ("picture", None, picture | {"batch": 2}),
            ("timeline", None, picture),
            ("bare", "x.npz", bare),
            ("clip_score", "images.npz", {"prompt": "a red apple"}),
        ):
            path = None if file is None else str(tmp_path / file)
            worker.ask("prepare", call=call, feeds=path, parameters=parameters)
            worker.run(1)
            worker.ask("save", path=str(tmp_path / "out.npz"))
            with np.load(tmp_path / "out.npz") as saved:
                outputs[call] = dict(saved)
    assert outputs["unet"]["out_sample"].shape == (2, 4, 8, 8)
    assert outputs["picture"]["images"].shape == (2, 128, 128, 3)
    assert outputs["picture"]["images"].dtype == np.uint8
    assert np.abs(outputs["clip_score"]["scores"]).max() <= 1
    names = outputs["timeline"]["names"].tolist()
    assert names.count("unet") == 2
    assert names[-2:] == ["vae_decoder", "all"]
    assert (outputs["timeline"]["ends"] >= outputs["timeline"]["starts"]).all()
