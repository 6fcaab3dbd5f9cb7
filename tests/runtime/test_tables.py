from __future__ import annotations

import dataclasses

import pytest

from edgediffusion.engines.probe import Probe
from edgediffusion.engines.spec import GraphSpec, TensorSpec
from edgediffusion.runtime.doctor import Machine
from edgediffusion.runtime.findings import Finding
from edgediffusion.runtime.manifest import Dialect, FileRecord, GraphRecord, Manifest, Parity
from edgediffusion.runtime.metadata import Parameters
from edgediffusion.runtime.tables import show_machine, show_manifest, show_parameters

PARAMETERS = Parameters(
    prompt="a [red]apple[/red] :apple:\nand more",
    negative_prompt="",
    num_inference_steps=20,
    scheduler="euler",
    guidance_scale=7.5,
    seed=0,
    width=None,
    height=None,
    model=None,
    version=None,
    other={"Clip skip": "2"},
)


def test_parameters_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_parameters(PARAMETERS)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "prompt               a [red]apple[/red] :apple:",
        "                     and more",
        "negative_prompt",
        "num_inference_steps  20",
        "scheduler            euler",
        "guidance_scale       7.5",
        "seed                 0",
        "Clip skip            2",
    ]


def test_a_picture_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_parameters(dataclasses.replace(PARAMETERS, prompt="a\x1b[2Jb\rc\x9bd", other={"\x1b]0;e": "\x07f"}))
    out = capsys.readouterr().out
    assert "a?[2Jb?c?d" in out
    assert "?]0;e" in out
    assert "?f" in out
    assert not any(mark in out for mark in "\x1b\r\x9b\x07")


def test_long_values_are_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    show_parameters(dataclasses.replace(PARAMETERS, prompt=" ".join(["apple"] * 200)))
    assert capsys.readouterr().out.count("apple") == 200


def test_a_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    spec = GraphSpec(
        "unet",
        (TensorSpec("sample", "float32", ("batch", 4)), TensorSpec("timestep", "int64", (1,))),
        (TensorSpec("out_sample", "float32", ("batch", 4)),),
    )
    graph = GraphRecord(
        model="unet/model.onnx",
        weights="unet/w",
        spec=spec,
        parity=Parity(error=2e-6, tolerance=1e-4, worst="zeros"),
        dtype="float32",
        weights_dtype="float16",
        dialects={
            "cuda": Dialect(
                model="unet/model.cuda.onnx",
                parity=Parity(error=3e-3, tolerance=1e-2, worst="zeros"),
                changed={"NhwcConv": 98, "BiasSplitGelu": 0, "GroupNorm": 16},
            )
        },
    )
    show_manifest(
        Manifest(
            family="sd",
            source="a checkpoint",
            source_sha256={},
            opset=18,
            license="Apache-2.0",
            versions={"torch": "2.13"},
            graphs={"unet": graph},
            files={"unet/w": FileRecord(bytes=3 * 2**20, sha256="0"), "big": FileRecord(bytes=2**31, sha256="0")},
        )
    )
    out = " ".join(capsys.readouterr().out.split())
    for expected in (
        "family sd",
        "source a checkpoint",
        "licence Apache-2.0",
        "sizes any",
        "written with torch 2.13",
        "files 2, 2.0 GiB",
        "unet float32 sample float32 (batch, 4) out_sample float32 (batch, 4) 3.0 MiB float16 2.0e-06, allowed 1e-04",
        "timestep int64 (1)",
        "unet for cuda: 98 NhwcConv, 16 GroupNorm; error 3.0e-03, allowed 1e-02",
    ):
        assert expected in out


def test_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(
        versions={"python": "3.11"}, system="Linux x86_64", cpu=None, features=(), threads=2, memory=8 * 2**30
    )
    probes = [
        Probe(backend="ort", device="cpu", versions={"onnxruntime": "1.32"}, works=True),
        Probe(
            backend="ort", device="cuda", versions={}, works=False, reason="no driver", remedy="pip install " + "x" * 99
        ),
    ]
    findings = [Finding(name="clock", found="1970", passed=False, remedy="set it")]
    show_machine(machine, findings, probes)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    facts = ["versions  python 3.11", "system    Linux x86_64", "threads   2", "memory    8.0 GiB", "clock     1970"]
    assert lines[:5] == facts
    assert [line.split() for line in lines[6:9]] == [
        ["backend", "device", "installed"],
        ["ort", "cpu", "works", "onnxruntime", "1.32"],
        ["ort", "cuda", "does", "not", "work"],
    ]
    assert lines[9:] == [
        "",
        "ort on cuda: no driver",
        "    pip install " + "x" * 99,
        "",
        "clock: 1970",
        "    set it",
    ]
