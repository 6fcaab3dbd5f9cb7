"""Memory, imports, and sizes on disk."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from edgediffusion.bench import footprint
from edgediffusion.bench.figures import Figure
from edgediffusion.bench.pictures import OURS
from edgediffusion.bench.processes import Execution
from edgediffusion.engines.errors import EdgeDiffusionError


def quiet(line: str) -> None:
    pass


def test_disk_usage_is_that_of_du(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"1" * 12345)
    os.link(tmp_path / "sub" / "file", tmp_path / "again")
    (tmp_path / "link").symlink_to("/usr")
    du = subprocess.run(["du", "-s", "--block-size=1", tmp_path], capture_output=True, text=True, check=True)
    assert footprint.disk_usage(tmp_path) == int(du.stdout.split()[0])


def test_memory_is_in_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = Execution(started=0.0, ended=1.0, cpu_seconds=1.0, peak_bytes=250_000_000, output="")
    monkeypatch.setattr(footprint, "drawing_commands", lambda *given: {OURS: ["draw"]})
    monkeypatch.setattr(
        footprint, "in_turn", lambda commands, runs, *given: dict.fromkeys(commands, [execution] * runs)
    )
    (figure,) = footprint.peak_memory(tmp_path, 2, tmp_path, quiet)
    assert figure == Figure(name=f"{OURS}, peak memory (ru_maxrss)", unit="MB", values=(250.0, 250.0))


def test_import_time(tmp_path: Path) -> None:
    figure = footprint.import_time(2, tmp_path, quiet)
    assert (figure.unit, len(figure.values)) == ("ms", 2)


def test_sizes_are_less_what_an_empty_environment_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {
        "edgediffusion": {"edgediffusion": "1.0", "numpy": "2.0"},
        "diffusers": {"nvidia-nccl": "1", "torch": "2"},
    }
    contents = {"empty": 10_000_000, "edgediffusion": 14_000_000, "diffusers": 35_000_000}
    asked = []

    def install(environment: Path, requirements: list[str]) -> Path:
        asked.append(requirements)
        environment.mkdir()
        (environment / "file").write_bytes(b"1" * contents[environment.name])
        return environment

    monkeypatch.setattr(footprint, "_install", install)
    monkeypatch.setattr(footprint, "_installed", lambda environment: installed[environment.name])
    monkeypatch.setattr(footprint, "installed_versions", lambda names: {"torch": "2.13.0+cpu"})
    ours, theirs = footprint.sizes(tmp_path / "venvs", Path("/clone"), quiet)
    assert asked == [[], ["/clone[cpu]"], ["torch==2.13.0+cpu", "diffusers", "transformers", "accelerate"]]
    assert (ours.name, theirs.name) == (
        "on disk: edgediffusion 1.0, and what they need",
        "on disk: torch 2, and what they need, CUDA among it",
    )
    assert ours.median == pytest.approx(4, abs=0.02)  # whole blocks
    assert theirs.median == pytest.approx(25, abs=0.02)


def test_an_environment_of_nothing(tmp_path: Path) -> None:
    packages = footprint._install(tmp_path / "venv", [])
    assert (packages / "pip").is_dir()
    assert packages.is_relative_to(tmp_path)
    assert "pip" in footprint._installed(tmp_path / "venv")


def test_what_pip_cannot_install_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(environment: Path, requirements: list[str]) -> Path:
        environment.mkdir()
        if requirements:
            raise EdgeDiffusionError("no such wheel")
        return environment

    monkeypatch.setattr(footprint, "_install", install)
    with pytest.raises(EdgeDiffusionError, match="no such wheel"):
        footprint.sizes(tmp_path / "venvs", tmp_path / "nowhere", quiet)
    assert list(tmp_path.iterdir()) == []
