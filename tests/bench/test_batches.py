from __future__ import annotations

from pathlib import Path

import pytest

from edgediffusion.bench import batches
from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime import Pipeline


def test_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __enter__(self) -> object:
            return None

        def __exit__(self, *_: object) -> None: ...

    seconds = iter([99.0, 99.0, 16.0, 8.0, 32.0, 4.0])  # the first round does not count
    monkeypatch.setattr(Pipeline, "load", lambda bundle: Fake())
    monkeypatch.setattr(batches, "_seconds", lambda pipeline, size: next(seconds))
    said: list[str] = []
    one, four, ratio = batches.measure(Path(), [1, 4], 2, said.append)
    assert said == ["round 0 of 2", "round 1 of 2", "round 2 of 2"]
    assert (one.name, one.unit, one.values) == ("a picture, 1 at once", "ms", (1000.0, 2000.0))
    assert four.values == (500.0, 250.0)
    assert ratio.values == (2.0, 8.0)


def test_sizes_that_are_none() -> None:
    with pytest.raises(UsageError, match="sizes '1;2'; wanted numbers between commas, such as 1,16"):
        batches.batches(["--sizes", "1;2"])
