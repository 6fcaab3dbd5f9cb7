from __future__ import annotations

import builtins
import time
from pathlib import Path

import pytest

from edgediffusion.runtime import timings
from edgediffusion.runtime.timings import Timings


def test_a_part_that_is_measured_twice_spans_both() -> None:
    measured = Timings()
    with measured.part("step"):
        pass
    between = measured.now()
    with pytest.raises(ValueError, match="stop"), measured.part("step"):
        raise ValueError("stop")
    begin, end = measured.parts["step"]
    assert begin <= between <= end <= measured.now()


def test_parts_in_the_order_in_which_they_began() -> None:
    measured = Timings()
    measured.parts = {"b": (1.5, 2.0), "a": (0.25, 3.25)}
    assert measured.lines() == [" begin  seconds", "  0.25    3.000  a", "  1.50    0.500  b"]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not say when a process was started")
def test_the_age_of_the_process_grows() -> None:
    before = timings.process_age()
    time.sleep(0.01)
    assert 0 < before < timings.process_age()


def test_a_system_that_does_not_tell_the_age(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object, **kwargs: object) -> None:
        raise OSError

    monkeypatch.setattr(builtins, "open", none)
    assert timings.process_age() == 0
    assert Timings().parts["start of Python, imports, small files"][1] < 1
