"""A session and its cases, with workers that answer from tables: nothing here is measured."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediffusion.bench import gpu, machine
from edgediffusion.bench.cases import CASES, processes
from edgediffusion.bench.cases.quality import psnr
from edgediffusion.bench.contenders import Contender
from edgediffusion.bench.costs import Cost
from edgediffusion.bench.schema import OURS, Measurement
from edgediffusion.bench.session import Session, Settings, picture_settings
from edgediffusion.engines.errors import EdgeDiffusionError
from edgediffusion.runtime.manifest import Manifest
from edgediffusion.runtime.pipeline import BUILTIN

# By their full names: in the package, these names are the cases.
energy, quality, roofline = (
    importlib.import_module(f"edgediffusion.bench.cases.{name}") for name in ("energy", "quality", "roofline")
)
SPANS = {
    "names": np.array(["text_encoder", "unet", "unet", "all"]),
    "starts": np.array([0.0, 1.0, 2.5, 0.0]),
    "ends": np.array([1.0, 2.0, 3.0, 3.5]),
}


class FakeWorker:
    """Takes `seconds` for any call; fails at the request `fails`."""

    def __init__(self, name: str, seconds: float, calls: list[str], fails: str | None, asked: list[tuple[str, str]]):
        self.name, self._seconds, self._calls, self._fails, self._asked = name, seconds, calls, fails, asked
        self._call = ""

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        self._asked.append((self.name, do))
        if do == self._fails:
            raise EdgeDiffusionError(f"{self.name}: no {do}")
        if do == "prepare":
            self._call = fields["call"]
        if do == "save":
            images = {"images": np.full((1, 2, 2, 3), 100 if self.name == OURS else 90, np.uint8)}
            outputs: dict[str, Any] = {"timeline": SPANS, "clip_score": {"scores": np.array([0.25])}}
            np.savez(fields["path"], **outputs.get(self._call, images))
        answers: dict[str, dict[str, Any]] = {
            "load": {"seconds": 0.5, "calls": self._calls, "versions": {}},
            "memory": {"peak_bytes": 7},
        }
        return answers.get(do, {})

    def run(self, times: int) -> tuple[float, ...]:
        self.ask("run")
        return (self._seconds,) * times


class FakeContender(Contender):
    """Starts a `FakeWorker`."""

    asked: list[tuple[str, str]]
    calls = ("unet", "picture", "timeline", "bare", "text_encoder", "vae_decoder")
    fails: str | None = None

    @contextmanager
    def start(self) -> Iterator[Any]:
        yield FakeWorker(self.name, 1.0 if self.name == OURS else 2.0, list(self.calls), self.fails, self.asked)


Make = Callable[..., Session]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def session(
        *peers: str, fails: str | None = None, calls: tuple[str, ...] | None = None, guidance_scale: float = 7.5
    ) -> Session:
        asked: list[tuple[str, str]] = []
        contenders: list[Contender] = []
        for name in (OURS, *peers):
            contender = FakeContender(name=name, python="", worker="", request={"source": str(tmp_path)})
            object.__setattr__(contender, "asked", asked)
            if name != OURS:
                object.__setattr__(contender, "fails", fails)
                object.__setattr__(contender, "calls", calls or contender.calls)
            contenders.append(contender)
        settings = Settings(
            rounds=2,
            steps=3,
            guidance_scale=guidance_scale,
            batches=(1, 4),
            latent=16,
            factor=8,
            backend="ort",
            device="cpu",
            reference=tmp_path,
        )
        lines: list[str] = []
        return Session(
            bundle=BUILTIN,
            manifest=Manifest.read(BUILTIN),
            settings=settings,
            contenders=contenders,
            folder=tmp_path,
            report=lines.append,
        )

    return session


def asked(session: Session) -> list[tuple[str, str]]:
    contender: Any = session.contenders[0]
    found: list[tuple[str, str]] = contender.asked
    return found


def of(session: Session, case: str) -> dict[str, Measurement]:
    return {m.contender: m for m in session.measurements if m.case == case}


def test_contenders_take_turns(make: Make) -> None:
    session = make("peer")
    CASES["unet"](session)
    runs = [name for name, do in asked(session) if do == "run"]
    assert runs == [OURS] * 3 + ["peer"] * 3 + [OURS, "peer"] * 2  # warm after three, then A B A B
    assert {name: m.rounds for name, m in of(session, "unet").items()} == {
        OURS: ((1.0,), (1.0,)),
        "peer": ((2.0,), (2.0,)),
    }
    assert of(session, "unet")[OURS].parameters == {"batch": 2, "height": 16, "width": 16, "sequence_length": 77}
    assert of(session, "agreement")["peer"].values == [pytest.approx(10 / 90)]


@pytest.mark.parametrize("fails", ["load", "prepare", "run", "save"])
def test_a_peer_that_fails_is_left_out(fails: str, make: Make) -> None:
    session = make("peer", fails=fails)
    CASES["unet"](session)
    CASES["vae_decoder"](session)
    assert session.skipped == [f"peer: no {fails}; skipped from here on"]
    assert not session.takes_part("peer")
    assert list(of(session, "vae_decoder")) == [OURS]


def test_when_we_fail_that_is_the_end(make: Make) -> None:
    session = make()
    object.__setattr__(session.contenders[0], "fails", "run")
    with pytest.raises(EdgeDiffusionError, match="edgediffusion: no run"):
        CASES["unet"](session)


def test_who_has_no_such_call_is_named_once(make: Make) -> None:
    session = make("peer", calls=("unet",))
    CASES["picture"](session)
    CASES["throughput"](session)
    assert session.skipped == ["peer: has no picture"]
    batches = [m.parameters["batch"] for m in session.measurements if m.case == "throughput"]
    assert batches == [1, 4]


def test_without_guidance_the_unet_sees_a_row_a_picture(make: Make) -> None:
    session = make(guidance_scale=1.0)
    for case in ("text_encoder", "unet", "vae_decoder", "growth"):
        CASES[case](session)
    found = [(m.case, m.parameters["batch"]) for m in session.measurements if "batch" in m.parameters]
    assert found[:3] == [("text_encoder", 2), ("unet", 1), ("vae_decoder", 1)]
    assert [batch for case, batch in found if case == "growth-batch"] == [1, 4]
    assert picture_settings(session)["guidance_scale"] == 1


def test_the_loop_is_what_lies_between_two_calls_of_the_unet(make: Make) -> None:
    session = make()
    CASES["loop"](session)
    assert of(session, "loop")[OURS].rounds == ((0.5,), (0.5,))
    assert [(span.name, span.start, span.end) for span in session.timeline][1] == ("unet", 1.0, 2.0)


def test_load_and_memory_are_of_fresh_processes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def watched() -> Iterator[list[float]]:
        peak: list[float] = []
        yield peak
        peak.append(11.0)

    monkeypatch.setattr(processes, "watch_memory", watched)
    session = make("peer")
    CASES["load"](session)
    assert {name: m.rounds for name, m in of(session, "load").items()} == dict.fromkeys(
        (OURS, "peer"), ((0.5,), (0.5,))
    )
    CASES["memory"](session)
    found = [(m.contender, m.parameters["of"], m.median) for m in session.measurements if m.case == "memory"]
    assert found == [(OURS, "host", 7), (OURS, "device", 11), ("peer", "host", 7), ("peer", "device", 11)]


def test_build_only_where_there_is_something_to_build(make: Make) -> None:
    session = make()
    CASES["build"](session)
    assert session.skipped == ["build: skipped, ort runs graphs as they are"]


def test_energy(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make()
    monkeypatch.setattr(energy, "joules", lambda: None)
    CASES["energy"](session)
    assert session.skipped == ["energy: skipped, no GPU here that counts it (pynvml)"]
    counter = iter([0.0, 0.0, 30.0, 30.0, 90.0])
    monkeypatch.setattr(energy, "joules", lambda: next(counter))
    CASES["energy"](session)
    assert of(session, "energy")[OURS].values == [10.0, 20.0]  # three pictures of a second each


def test_quality_is_against_as_many_steps_and_the_most(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make("peer")
    monkeypatch.setattr(quality, "_reference", lambda session: session.contenders[0])
    CASES["quality"](session)
    decibels = [m for m in session.measurements if m.case == "quality"]
    found = {(m.contender, m.parameters["steps"], m.parameters["against"]) for m in decibels}
    assert (OURS, 5, 5) in found
    assert ("peer", 5, 50) in found
    assert ("peer", 50, 50) in found
    assert of(session, "quality")["peer"].median == pytest.approx(10 * np.log10(255**2 / 100))
    assert of(session, "quality")[OURS].median == 120
    assert of(session, "clip-score")["peer"].values == [0.25]


def test_pictures_that_cannot_be_scored(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = make()
    monkeypatch.setattr(session, "ours", lambda: FakeWorker(OURS, 1.0, [], "prepare", []))
    quality._score(session, OURS, 5)
    assert session.skipped == ["CLIP score: skipped, edgediffusion: no prepare"]


def test_psnr_is_not_that_of_bytes_that_wrap() -> None:
    a, b = np.full((8, 8), 200, np.uint8), np.full((8, 8), 184, np.uint8)
    assert psnr(a, b) == pytest.approx(20 * np.log10(255 / 16))


def test_a_share_of_the_roofline(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a second for 2 * 1024^3 FLOP and for 2 * 2^28 bytes, a graph of half as many takes half a second at best."""
    monkeypatch.setattr(roofline, "count", lambda *given: Cost(flops=2**30, bytes=2**26))
    session = make("peer")
    CASES["unet"](session)
    CASES["roofline"](session)
    shares = [(m.contender, m.median) for m in session.measurements if m.case == "roofline" and m.unit == ""]
    assert shares == [(OURS, 0.5), ("peer", 0.25)]


def test_facts_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\ncpu MHz\t\t: 2445.4\nprocessor : 1\ncpu MHz : 3000\n")
    assert machine.cpu_clocks(cpuinfo) == [2445.4, 3000.0]
    assert machine.cpu_clocks(tmp_path / "none") == []
    assert machine.revision(tmp_path) is None
    assert machine.bundle_digest(tmp_path) is None
    monkeypatch.setattr(gpu, "_device", lambda: None)
    assert gpu.facts() is None
    assert gpu.joules() is None
    with gpu.watch_memory() as peak:
        pass
    assert peak == []


class FakeNvml:
    """As much of pynvml as is asked for."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    NVMLError = RuntimeError
    used = 100

    def __getattr__(self, name: str) -> Any:
        memory = type("Memory", (), {"used": self.used, "total": 1000})
        answers = {
            "nvmlDeviceGetName": "A GPU",
            "nvmlSystemGetDriverVersion": "1.2",
            "nvmlDeviceGetMemoryInfo": memory,
            "nvmlDeviceGetClockInfo": 1980,
            "nvmlDeviceGetTotalEnergyConsumption": 2500,
        }
        return lambda *given: answers[name]


def test_what_nvml_says(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    monkeypatch.setattr(gpu, "_device", lambda: (nvml, None))
    clocks = {"sm": 1980, "memory": 1980}
    assert gpu.facts() == {"name": "A GPU", "driver": "1.2", "memory": 1000, "clocks": clocks}
    assert gpu.joules() == 2.5
    with gpu.watch_memory() as peak:
        nvml.used = 350
    assert peak == [250.0]
