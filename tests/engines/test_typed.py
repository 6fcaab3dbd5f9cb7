from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from edgediffusion.engines.typed import check_types


@dataclass(frozen=True)
class Inner:
    size: int = 1


@dataclass(frozen=True)
class Outer:
    name: str = "a"
    scale: float | None = 1.0
    shape: tuple[int | str, ...] = (1, "batch")
    values: Sequence[float] | None = None
    pair: tuple[str, tuple[int, int]] = ("a", (1, 2))
    inner: Mapping[str, Inner] = field(default_factory=dict)


@pytest.mark.parametrize(
    "changes", [{}, {"scale": 2}, {"scale": None}, {"values": [1, 2.5]}, {"shape": ()}, {"inner": {"a": Inner()}}]
)
def test_what_fits(changes: dict[str, Any]) -> None:
    check_types(Outer(**changes), "outer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 1}, "outer.name is 1"),
        ({"name": None}, "outer.name is None"),
        ({"scale": "1"}, "outer.scale is '1'"),
        ({"scale": True}, "outer.scale is True"),
        ({"shape": (1.5,)}, "outer.shape is"),
        ({"scale": 10**400}, "outer.scale is 1000"),
        ({"pair": ("a", (1, 2, 3))}, "outer.pair is"),
        ({"pair": (1, (1, 2))}, "outer.pair is"),
        ({"values": "12"}, "outer.values is '12'"),
        ({"inner": []}, "outer.inner is"),
        ({"inner": {"a": Inner("b")}}, "outer.inner.a.size is 'b'"),  # type: ignore[arg-type]
        ({"inner": {"a": {}}}, "outer.inner is"),
    ],
)
def test_what_does_not(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        check_types(Outer(**changes), "outer")
