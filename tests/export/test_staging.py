from __future__ import annotations

from pathlib import Path

import pytest

from edgediffusion.engines.errors import UsageError
from edgediffusion.export.staging import BUNDLE, UNFINISHED, staging


def killed(place: Path, out: str) -> Path:
    left = place / f".{out}.abc{UNFINISHED}"
    (left / BUNDLE).mkdir(parents=True)
    (left / "lock").touch()
    return left


@pytest.mark.parametrize("empty", [False, True])
def test_what_a_killed_export_left_is_taken_away(empty: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if empty:
        out.mkdir()
    left, others = killed(out if empty else tmp_path, "out"), killed(tmp_path, "other")
    with staging(out, keep=False) as folder:
        assert not left.exists()
        (folder / BUNDLE / "a").write_text("a")
    assert [path.name for path in out.iterdir()] == ["a"]
    assert others.exists()


def test_what_is_under_way_stays(tmp_path: Path) -> None:
    with staging(tmp_path / "out", keep=False) as first:
        with pytest.raises(ZeroDivisionError), staging(tmp_path / "out", keep=False):
            raise ZeroDivisionError
        (first / BUNDLE / "a").write_text("a")
    assert (tmp_path / "out" / "a").exists()


def test_two_that_resume(tmp_path: Path) -> None:
    with (
        staging(tmp_path / "out", keep=True),
        pytest.raises(UsageError, match="out: another export to it is under way; wait for it, or name another"),
        staging(tmp_path / "out", keep=True),
    ):
        pass
