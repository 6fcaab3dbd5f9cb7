"""The command line around the benchmarks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgediffusion.bench import benchmark, footprint
from edgediffusion.bench import cold_start as cold_start_module
from edgediffusion.bench.cli import bench
from edgediffusion.bench.figures import Figure
from edgediffusion.bench.report import write_json
from edgediffusion.bench.schema import Results
from edgediffusion.engines.errors import BundleError, UsageError
from edgediffusion.runtime.pipeline import BUILTIN

FIGURES = [
    Figure(name="generate", unit="s", values=(1.5, 1.25)),
    Figure(name="ratio", unit="x", values=(3.0,)),
]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, int]]:
    calls: list[tuple[Path, int]] = []

    def measure(bundle: Path, runs: int, folder: Path, report: object) -> list[Figure]:
        calls.append((bundle, runs))
        return FIGURES

    monkeypatch.setattr(cold_start_module, "measure", measure)
    return calls


def test_lines_and_a_file(measured: list[tuple[Path, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "figures.json"
    assert bench(["cold-start", "--runs", "2", "--cores", "1", "--json", str(path)]) == 0
    assert measured == [(BUILTIN, 2)]
    *_, header, seconds, ratio = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["median", "min", "max", "unit", "runs"]
    assert seconds == ["generate", "1.375", "1.250", "1.500", "s", "2"]
    assert ratio == ["ratio", "3.00", "3.00", "3.00", "x", "1"]
    content = json.loads(path.read_text())
    assert content["figures"] == [figure.to_json() for figure in FIGURES]
    assert content["settings"]["num_inference_steps"] == 20
    assert content["environment"]["cores_used"] == 1
    assert {"edgediffusion", "python", "numpy", "onnxruntime", "torch"} <= content["environment"]["versions"].keys()
    assert list(tmp_path.iterdir()) == [path]


def test_ten_runs_and_the_built_in_model_unless_told(measured: list[tuple[Path, int]]) -> None:
    bench(["cold-start", "--cores", "1"])
    assert measured == [(BUILTIN, 10)]


def test_footprint_and_its_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Path, Path]] = []

    def sizes(folder: Path, source: Path, report: object) -> list[Figure]:
        asked.append((folder, source))
        return []

    monkeypatch.setattr(footprint, "peak_memory", lambda *given: [])
    monkeypatch.setattr(
        footprint, "import_time", lambda runs, *given: Figure(name="i", unit="ms", values=(1.0,) * runs)
    )
    monkeypatch.setattr(footprint, "sizes", sizes)
    assert bench(["footprint", "--runs", "2", "--cores", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["i", "1.0", "1.0", "1.0", "ms", "20"]
    assert asked == []
    monkeypatch.chdir(tmp_path)
    bench(["footprint", "--cores", "1", "--install", "venvs", "--source", "clone"])
    assert asked == [(tmp_path / "venvs", tmp_path / "clone")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cold-start", "--runs", "0"], "--runs: '0', wanted 1 or more; see: edgediffusion bench cold-start --help"),
        (["cold-start", "--cores", "two"], "--cores: 'two', wanted 1 or more"),
        (["cold-start", "--cores", "99999"], "cores 99999; this machine lets the command use"),
        (["cold-start", "--json", "taken"], "json taken exists; name a new file"),
        (["cold-start", "--json", "nowhere/a.json"], "json nowhere/a.json: there is no folder nowhere; make it first"),
        (["footprint", "--install", "taken"], "install taken exists; name a new folder"),
        (["footprint", "--install", "no/where"], "install no/where: there is no folder no; make it first"),
        (["--cases", "unet,nothing"], "unknown case 'nothing'; known: build, disk"),
        (["--against", "nobody"], "unknown peer 'nobody'; known: diffusers, openvino"),
        (["--device", "abacus"], "unknown device 'abacus'; known: cpu, cuda"),
        (["taken", "--random", "sd15"], "--random sd15 and the bundle taken; give one of them"),
        (["--html", "taken"], "html taken exists; name a new file"),
        (["--batches", "1,no"], "--batches: 'no', wanted 1 or more"),
        (["--rounds", "0"], "--rounds: '0', wanted 1 or more"),
    ],
)
def test_what_cannot_be_used(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    with pytest.raises(UsageError) as caught:
        bench(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_bundle(tmp_path: Path) -> None:
    for arguments in (["cold-start", "--bundle", str(tmp_path)], [str(tmp_path), "--cores", "1"]):
        with pytest.raises(BundleError, match=str(tmp_path)):
            bench(arguments)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "full").touch()
    with pytest.raises(UsageError, match="folder cannot be written: "):
        write_json(folder, {}, {}, [])
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "edgediffusion.bench", "cold-start", "--runs", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("edgediffusion: error: argument --runs: '0', wanted 1 or more")
    assert done.stderr.count("\n") == 1


def test_what_is_under_way_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.say("run 1 of 2")
    assert tuple(capsys.readouterr()) == ("", "run 1 of 2\n")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_beside_diffusers(family: str, bundles: Callable[[str], Path], tmp_path: Path) -> None:
    """The same weights, inputs and noise on both sides: what they draw agrees, with guidance and without."""
    for scale in ("7.5", "1"):
        file = tmp_path / f"{scale}.json"
        cases = ["--cases", "unet,vae_decoder,picture", "--against", "diffusers", "--guidance-scale", scale]
        few = ["--num-inference-steps", "2", "--rounds", "1", "--cores", "1"]
        assert bench([str(bundles(family)), *cases, *few, "--device", "cpu", "--json", str(file)]) == 0
        results = Results.read(file)
        assert results.skipped == ()
        assert {m.parameters["of"]: m.median < 0.01 for m in results.of("agreement")} == dict.fromkeys(
            ("unet", "vae_decoder", "picture"), True
        )
