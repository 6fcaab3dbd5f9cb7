"""Bars, on terminals only."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.progress import bars

from .conftest import Opened


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def pipeline(bundle_path: Path, opened: Opened) -> Iterator[Pipeline]:
    with Pipeline.load(bundle_path) as pipeline:
        yield pipeline


def test_the_build_of_an_engine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with bars() as shown:
        shown.building("vae_decoder")
        unet, text_encoder = map(shown.building, ("unet", "text_encoder"))
        for fraction in (0.0, 0.5):
            unet(fraction)
            text_encoder(2 * fraction)
            sys.stdout.write("into a pipe\n")
    assert "building unet" in terminal.getvalue()
    assert "vae_decoder" not in terminal.getvalue()  # nobody builds it
    last = terminal.getvalue().rpartition("building unet")[2]
    assert "50%" in last
    assert "-:--:--" in last  # the time that is left
    assert "text_encoder" not in last  # it is done
    assert capsys.readouterr().out == "into a pipe\n" * 2


def test_what_is_said_of_each_engine_is_shown_once(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with bars() as shown:
        for _ in range(3):
            shown.say("device auto: cpu, since [no driver]")
    assert terminal.getvalue().count("device auto: cpu, since [no driver]") == 1


def test_a_preview_has_the_terminal_for_itself(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with bars() as shown:
        shown.building("unet")(0.5)
        steps = iter(shown.unseen(pipeline.steps("", num_inference_steps=2)))
        next(steps)
        before = terminal.getvalue()
        time.sleep(0.3)  # bars are drawn ten times a second
        assert terminal.getvalue() == before
        assert "building unet" in before


def test_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as shown:
        shown.building("unet")(0.5)
        shown.say("device auto: cpu")
    assert capsys.readouterr().err == ""
