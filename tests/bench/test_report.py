"""What people see of results: tables, a comparison, plots, the report."""

from __future__ import annotations

import dataclasses
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from edgediffusion.bench import html, tables
from edgediffusion.bench.cli import bench
from edgediffusion.bench.compare import change
from edgediffusion.bench.html import write_html
from edgediffusion.bench.plots import PLOTS, drawn
from edgediffusion.bench.schema import OURS, Results
from edgediffusion.engines.errors import BackendUnavailable, UsageError

from .results import MACHINE, SETTINGS, measured, results

EMPTY = Results(settings=SETTINGS, machine=MACHINE, measurements=())


def test_tables_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(results())
    lines = [re.sub(r" +", " ", line).strip() for line in capsys.readouterr().out.splitlines()]
    assert "cpu: A processor, 2 of 4 cores" in lines
    assert "gpu: A GPU, driver 1.2, 1980 MHz" in lines
    assert "openvino: skipped" in lines
    assert "unet batch 2 diffusers 4 s 5.6 s 5.96 s 50.0 % WIDE 3" in lines
    assert "disk batch 2 edgediffusion 30 MB 1" in lines
    assert "unet batch 2 diffusers 2.00 1.00 to 3.00 WIDE" in lines
    assert "pixels edgediffusion 1.00" in lines


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (1.5, "s", "1.5 s"),
        (0.0123456, "s", "12.35 ms"),
        (3.2e-5, "s", "32 us"),
        (2.5e9, "bytes", "2.5 GB"),
        (7e14, "FLOP/s", "700 TFLOP/s"),
        (0.25, "", "0.25"),
        (51.0, "dB", "51 dB"),
    ],
)
def test_amounts(value: float, unit: str, shown: str) -> None:
    assert tables.amount(value, unit) == shown


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([1.0, 1.0, 1.0, 1.0], [1.5, 1.5, 1.5, 1.5], ("+50.0 %", "0.0 %", "more")),
        ([1.0, 1.0, 1.0, 1.0], [0.5, 0.5, 0.5, 0.5], ("-50.0 %", "0.0 %", "less")),
        ([0.8, 0.9, 1.1, 1.2], [0.9, 1.0, 1.2, 1.3], ("+10.0 %", "33.8 %", "within the noise")),
        ([2.0], [2.0], ("+0.0 %", "0.0 %", "same")),
        ([0.0], [2.0], ("+inf %", "0.0 %", "more")),
    ],
)
def test_a_change_is_told_from_noise(before: list[float], after: list[float], verdict: tuple[str, ...]) -> None:
    a, b = (measured("unet", OURS, [tuple(values)]) for values in (before, after))
    assert change(a, b)[-3:] == verdict


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, scale in (("a.json", 1.0), ("b.json", 4.0)):
        (tmp_path / name).write_text(results(scale).to_json())
    assert bench(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    lines = [re.sub(r" +", " ", line).strip() for line in capsys.readouterr().out.splitlines()]
    assert "Facts that differ" not in lines
    assert "unet batch 2 edgediffusion 2 s 8 s +300.0 % 0.0 % more" in lines
    assert "unet batch 2 diffusers 4 s 4 s +0.0 % 70.7 % same" in lines
    assert "unet batch 2 diffusers 2.00 0.50 less" in lines


def test_compare_keeps_to_the_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cost = (measured("cost", OURS, [(value,)], unit, of="unet") for value, unit in ((1e9, "FLOP"), (2e6, "bytes")))
    (tmp_path / "a.json").write_text(Results(settings=SETTINGS, machine=MACHINE, measurements=tuple(cost)).to_json())
    assert bench(["compare", *[str(tmp_path / "a.json")] * 2]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "cost" in line] == ["same", "same"]


def test_compare_says_what_else_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Results(settings=SETTINGS | {"dtype": "float16"}, machine=MACHINE | {"cpu": "Another"}, measurements=())
    for name, found in (("a.json", EMPTY), ("b.json", other)):
        (tmp_path / name).write_text(found.to_json())
    bench(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["dtype", "float32", "float16"] in lines
    assert ["cpu", "A", "processor", "Another"] in lines


@pytest.fixture(scope="module")
def plots() -> dict[str, bytes]:
    return drawn(results(), "svg")


def test_every_plot_is_drawn_where_there_is_something_to_draw(plots: dict[str, bytes]) -> None:
    assert plots.keys() == PLOTS.keys()
    assert drawn(EMPTY, "svg") == {}
    assert all(ElementTree.fromstring(data).tag.endswith("svg") for data in plots.values())
    assert b"p = 1.00" in plots["growth"]


def test_plots_as_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    path.write_text(dataclasses.replace(results(), measurements=()).to_json())
    assert bench(["plot", str(path), str(tmp_path), "--format", "png"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "timeline.png")]
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="nowhere: there is no such folder; make it first"):
        bench(["plot", str(path), str(tmp_path / "nowhere")])


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match=r"matplotlib is not installed; pip install 'edgediffusion\[bench\]'"):
        drawn(EMPTY, "svg")


def test_the_report_is_one_file_that_asks_for_no_other(
    plots: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "drawn", lambda results, kind: plots)
    path = tmp_path / "a.html"
    write_html(path, results())
    text = path.read_text()
    assert text.count("<svg") == len(PLOTS)
    assert "<?xml" not in text
    assert not re.search(r"""(src|href)=["']?http|@import|<script""", text.replace('xlink:href="#', ""))
    ids = re.findall(r'id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', text)) | set(re.findall(r"url\(#([^)]+)\)", text)) <= set(ids)
    assert '<td class="wide">50.0 % WIDE</td>' in text
    assert "<li>openvino: skipped</li>" in text
