"""The file that a benchmark writes, and what is derived from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgediffusion.bench.schema import OURS, SCHEMA, Measurement, Results, Span, ratios
from edgediffusion.engines.errors import UsageError

from .results import measured, results


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(results().to_json())
    assert Results.read(path) == results()
    content = json.loads(path.read_text())
    assert content["schema"] == SCHEMA
    assert content["measurements"][0]["p50"] == 2.0
    assert {"p90", "p99", "spread", "wide", "rounds"} <= content["measurements"][0].keys()
    assert content["ratios"][0] | {"values": None} == {
        "case": "unet",
        "contender": "diffusers",
        "parameters": {"batch": 2},
        "values": None,
        "median": 2.0,
        "interval": [1.0, 3.0],
        "wide": True,
    }


def test_ratios_are_of_rounds_in_which_both_ran() -> None:
    ours = measured("unet", OURS, [(1.0, 1.0), (2.0, 4.0, 2.0)])
    theirs = measured("unet", "diffusers", [(3.0,), (8.0, 8.0)])
    (ratio,) = ratios([ours, theirs])
    assert ratio.values == (3.0, 4.0)


@pytest.mark.parametrize(
    "other",
    [
        measured("unet", "diffusers", [(1.0,)], batch=4),
        measured("vae_decoder", "diffusers", [(1.0,)]),
        measured("unet", "diffusers", [(1.0,), (1.0,)]),
        Measurement(case="unet", contender="diffusers", unit="bytes", rounds=((1.0,),), parameters={"batch": 2}),
    ],
    ids=["other parameters", "another case", "other rounds", "not a time"],
)
def test_no_ratio_of_different_things(other: Measurement) -> None:
    assert list(ratios([measured("unet", OURS, [(1.0,)]), other])) == []


def test_wide_where_a_tenth_cannot_be_told() -> None:
    tight, loose = (
        next(ratios([measured("unet", OURS, [(1.0,)] * 6), measured("unet", "d", [(t,) for t in times])]))
        for times in ([2.0, 2.0, 2.05, 2.05, 2.1, 2.1], [2.0, 2.0, 2.1, 2.1, 2.3, 2.3])
    )
    assert not tight.wide
    assert loose.wide
    assert Span(name="unet", start=0.0, end=1.0) in results().timeline


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 99}', r"schema 99, this version reads 1; measure again"),
        ("[]", r"not what bench --json writes"),
        ("{", r"not what bench --json writes"),
        ('{"schema": 1}', r"not what bench --json writes \(KeyError\('settings'\)\)"),
    ],
)
def test_what_is_no_result(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        Results.read(tmp_path / "a.json")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.json: cannot be read \(No such file or directory\); name a file"):
        Results.read(tmp_path / "a.json")
