"""Where the time goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgediffusion.bench import cold_start
from edgediffusion.bench.pictures import OURS, THEIRS
from edgediffusion.bench.processes import Execution

ENDS = {"interpreter": 10.5, "imports": 11.0, "text encoder": 12.0, "denoising": 16.0, "PNG": 16.5}
PRINTED = json.dumps({"ends": ENDS, "step_ends": [13.5, 14.0, 16.0]})


def test_stages_add_up_to_the_process() -> None:
    execution = Execution(started=10.0, ended=17.5, cpu_seconds=1.0, peak_bytes=1, output=PRINTED)
    stages = cold_start.stages(execution)
    assert stages == {
        "  interpreter": 0.5,
        "  imports": 0.5,
        "  text encoder": 1.0,
        "  denoising": 4.0,
        "  PNG": 0.5,
        "  exit": 1.0,
        "  one denoising step (median of its run)": 1.5,
    }
    assert sum(list(stages.values())[:-1]) == execution.seconds


@pytest.mark.parametrize("compared", [True, False])
def test_figures(compared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = {OURS: [sys.executable, "-c", ""]} | ({THEIRS: [sys.executable, "-c", ""]} if compared else {})
    staged = [sys.executable, "-c", f"print({PRINTED!r})"]
    monkeypatch.setattr(cold_start, "drawing_commands", lambda bundle, folder, report: drawing)
    monkeypatch.setattr(cold_start, "staged_command", lambda bundle: staged)
    figures = {figure.name: figure for figure in cold_start.measure(tmp_path, 3, tmp_path, lambda line: None)}
    assert all(len(figure.values) == 3 for figure in figures.values())
    ratio = "diffusers / edgediffusion generate, run by run"
    assert (ratio in figures) == compared
    if compared:
        pairs = zip(figures[THEIRS].values, figures[OURS].values, strict=True)
        assert figures[ratio].values == tuple(theirs / ours for theirs, ours in pairs)
    assert figures["  PNG"].values == (0.5, 0.5, 0.5)
