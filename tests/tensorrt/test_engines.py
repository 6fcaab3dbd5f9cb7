"""Engines that are kept: which are refused, and what builders that meet or are killed leave."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgediffusion.runtime.manifest import MANIFEST
from edgediffusion.runtime.pipeline import BUILTIN

from .conftest import SEVERAL, Machine, ended, output, psnr, reference

SECONDS = 2.0  # of a stand-in's build


def flipped(plan: bytes) -> bytes:
    middle = len(plan) // 2
    return plan[:middle] + bytes([plan[middle] ^ 255]) + plan[middle + 1 :]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda plan, other: plan[:-1000], "truncated"),
        (lambda plan, other: flipped(plan), "altered"),
        (lambda plan, other: other, "truncated|altered"),
    ],
    ids=["truncated", "altered", "of another component"],
)
def test_damaged_plans(harm: Callable[[bytes, bytes], bytes], says: str, stocked: Machine) -> None:
    entry = stocked.engine("unet")
    entry.plan.write_bytes(harm(entry.read(), stocked.engine("vae_decoder").read()))
    stocked.refuses(says)
    stocked.run("engines", "verify", status=1, says=says)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("gpu", "NVIDIA A100-SXM4-80GB", "the nearest is for GPU NVIDIA A100-SXM4-80GB, here "),
        ("driver", "9999.10+", r"the nearest is for driver 9999\.10\+, here "),
        ("version", "8.5.0", r"the nearest is for version 8\.5\.0, here "),
    ],
)
def test_engines_of_another_machine(field: str, value: str, says: str, stocked: Machine) -> None:
    entry = stocked.engine("unet")
    plan = entry.read()
    entry.remove()
    changed: dict[str, Any] = {field: value}
    target = replace(entry.recipe.target, **changed)
    stocked.store.add(replace(entry.recipe, target=target), entry.built, plan)
    stocked.refuses(says)
    stocked.run("engines", "verify", status=1, says=value.replace("+", r"\+"))
    stocked.run("engines", "prune", says="removed unet")


@pytest.mark.parametrize("harm", [lambda plan, other: plan[: len(plan) // 2], lambda plan, other: other])
def test_plans_that_only_tensorrt_can_tell_from_ours(harm: Callable[[bytes, bytes], bytes], stocked: Machine) -> None:
    entry = stocked.engine("unet")
    plan = harm(entry.read(), stocked.engine("vae_decoder").read())
    built = replace(entry.built, bytes=len(plan), sha256=hashlib.sha256(plan).hexdigest())
    stocked.store.add(entry.recipe, built, plan)
    stocked.refuses(r"unet.*\.plan: .*; delete it and build another")


def test_engines_of_other_weights(stocked: Machine, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(BUILTIN, tmp_path / "bundle"))
    weights = bundle / "unet" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    stocked.refuses("diffusion_pytorch_model.safetensors: ", bundle=bundle)
    manifest = bundle / MANIFEST
    manifest.write_text(manifest.read_text().replace(digest, hashlib.sha256(weights.read_bytes()).hexdigest()))
    stocked.refuses("no .* engine of unet that fits: the nearest is for weights ", bundle=bundle)


def wait_for_a_build(machine: Machine, process: subprocess.Popen[str]) -> None:
    while not list(machine.store.folder.glob("*.lock")):
        assert process.poll() is None, output(process)
        time.sleep(0.02)


def test_two_builders_of_one_engine(machine: Machine) -> None:
    build = machine.build("--component", "text_encoder")
    first = machine.start(*build, seconds=SECONDS)
    wait_for_a_build(machine, first)
    machine.run(*build, says="is being built by another process; waiting for it")
    ended(first)
    machine.engine("text_encoder").read()


@pytest.mark.parametrize("fraction", [0.1, 0.5])  # of what this build took
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_a_builder_that_is_stopped(stop: signal.Signals, fraction: float, built: Machine, machine: Machine) -> None:
    """An interrupt waits while TensorRT 8.6 starts, a fifth of the build, in which it holds Python's lock."""
    process = machine.start(*machine.build(*SEVERAL, "--component", "unet"), seconds=10 * SECONDS)
    wait_for_a_build(machine, process)
    seconds = built.engine("unet").built.seconds
    time.sleep(fraction * max(seconds, SECONDS))
    process.send_signal(stop)
    stopped = time.monotonic()
    ended(process, *((130, "interrupted") if stop == signal.SIGINT else (-stop,)))
    assert time.monotonic() - stopped < max(0.4 * seconds, 5 * SECONDS)
    assert list(machine.store.folder.glob("*.plan")) == []
    assert list(machine.store.entries()) == []
    machine.run(*machine.build("--component", "text_encoder"))
    machine.run("engines", "prune")
    assert [entry.recipe.source.component for entry in machine.store.entries()] == ["text_encoder"]


def test_engines_are_listed_and_moved(stocked: Machine, tmp_path: Path) -> None:
    names = sorted(entry.plan.name for entry in stocked.store.entries())
    assert all(name.removesuffix(".plan") in stocked.run("engines", "list", "--json") for name in names)
    assert stocked.run("engines", "verify").count("sound, and for this machine") == 3
    stocked.run("engines", "export", tmp_path / "engines.tar", says="3 engines in ")
    stocked.run("engines", "prune")
    assert len(list(stocked.store.entries())) == 3
    stocked.run("engines", "prune", "--all")
    stocked.refuses("no .* engine of .*; edgediffusion build")
    stocked.run("engines", "import", tmp_path / "engines.tar")
    assert sorted(entry.plan.name for entry in stocked.store.entries()) == names
    assert psnr(stocked.draw(), reference()[0]) > 60


def test_timings_are_kept_for_the_next_build(machine: Machine) -> None:
    if "timing_cache" not in machine.version.options:
        pytest.skip(f"{machine.version.label} times no kernels")
    sizes = [0]
    for _ in range(2):
        machine.run(*machine.build("--component", "text_encoder", "--timing-cache"))
        (timings,) = machine.store.folder.glob("*.timing")
        sizes.append(timings.stat().st_size)
        machine.engine("text_encoder").remove()
    assert sizes[0] < sizes[1] <= sizes[2]


def test_the_doctor(machine: Machine) -> None:
    """Its status is that of all backends; an engine is built to try this one, which is told before the report."""
    text = output(machine.start("doctor", "--json"))
    report = json.loads(text[text.index("{") :])
    (probe,) = (probe for probe in report["backends"] if probe["backend"] == machine.backend)
    assert probe["works"], probe
    (gpu,) = (finding for finding in report["findings"] if finding["name"] == "gpu")
    assert gpu["found"].startswith("NVIDIA")
