"""The command that measures a GPU: its table, which needs none, and what becomes of its steps."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from edgediffusion.bench import suite
from edgediffusion.bench.random_configs import MODELS
from edgediffusion.bench.scripts import measure_cuda, measure_gpu
from edgediffusion.bench.scripts.measure_gpu import STAGE, STEPS, SUITE


@pytest.mark.parametrize("name", STEPS)
def test_each_command_line_can_be_used(name: str, tmp_path: Path) -> None:
    line = measure_gpu.command(name, tmp_path, "cuda")
    module, arguments = line[line.index("-m") + 1], line[line.index("-m") + 2 :]
    model, result = tmp_path / STEPS[name].model, tmp_path / f"{name}.json"
    if module == SUITE:
        options = suite._options(arguments)
        assert (options.bundle, options.device, options.json) == (str(model / "bundle"), "cuda", result)
    else:
        assert module == STAGE
        assert arguments[0] in measure_cuda.STAGES
        assert arguments[1:] == [str(model), str(result), "cuda"]


def test_exports_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = ["sdxl", "sd21", "sd15"]
    assert set(models) == {step.model for step in STEPS.values()} <= MODELS.keys()
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    exports = measure_gpu.exports(tmp_path, models)
    shares = [line[line.index("-c") + 1].split(",") for line in exports.values()]
    assert [len(share) for share in shares] == [8, 4, 4]
    assert len({core for share in shares for core in share}) == 16
    (tmp_path / "sdxl" / "bundle").mkdir(parents=True)
    assert list(measure_gpu.exports(tmp_path, models)) == ["sd21", "sd15"]


def test_what_failed_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With commands that write one of the results, and then that of the step that failed."""
    (tmp_path / "sd15" / "bundle").mkdir(parents=True)

    def command(name: str, folder: Path, device: str) -> list[str]:
        return [sys.executable, "-c", f"open({str(folder / name)!r} + '.json', 'x'); print('{device}')"]

    monkeypatch.setattr(measure_gpu, "command", command)
    (tmp_path / "start.json").symlink_to(tmp_path / "nowhere" / "start.json")
    arguments = [str(tmp_path), "--only", "start,load"]
    assert measure_gpu.main(arguments) == 1
    (tmp_path / "start.json").unlink()
    assert measure_gpu.main([*arguments, "--device", "cpu"]) == 0
    lines = [line.split() for line in (tmp_path / "steps.txt").read_text().splitlines()]
    assert [line[:2] for line in lines] == [["start", "1"], ["load", "0"], ["start", "0"]]
    assert [(tmp_path / f"{name}.txt").read_text() for name in ("start", "load")] == ["cpu\n", "cuda\n"]
    assert capsys.readouterr().err.endswith("load: measured already\n")


def test_the_limit_ends_a_step_and_what_it_started(tmp_path: Path) -> None:
    program = """
import signal, subprocess, sys, time

def interrupt(number, frame):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # `timeout` sends it twice
    started.wait()
    sys.exit("KeyboardInterrupt")

signal.signal(signal.SIGINT, interrupt)
started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
time.sleep(60)
"""
    (tmp_path / "waits.py").write_text(program)
    line = measure_gpu.python(2, "waits")
    measure_gpu.run(tmp_path, {"waits": ["env", f"PYTHONPATH={tmp_path}", *line]})
    name, status, seconds, _ = (tmp_path / "steps.txt").read_text().split()
    assert (name, status) == ("waits", "124")
    assert int(seconds) < 20
    assert (tmp_path / "waits.txt").read_text().count("KeyboardInterrupt") == 2


def test_an_interrupt_ends_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupted)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        measure_gpu.run(tmp_path, {"waits": ["sleep", "60"], "too": ["sleep", "60"]})
    assert time.monotonic() - began < 30
    assert not (tmp_path / "steps.txt").exists()


def test_an_unknown_step(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        measure_gpu.main([str(tmp_path / "new"), "--only", "sd15,nothing"])
    assert caught.value.code == 2
    assert "argument --only: 'nothing', wanted some of sd15, sdxl, turbo" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
