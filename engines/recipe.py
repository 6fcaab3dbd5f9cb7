"""Everything that decides what a built engine is: by it engines are kept, found, and refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .profile import Profile

SCHEMA = 2  # 1: float32 was computed in TF32
STRIPPED = "stripped"  # in place of the weights' digest: the plan holds none, and takes those of any bundle

_WORDS = {
    "component": "component",
    "variant": "graph variant",
    "graph": "graph",
    "weights": "weights",
    "backend": "backend",
    "version": "version",
    "gpu": "GPU",
    "compute_capability": "compute capability",
    "driver": "driver",
}
_DIGESTS = frozenset({"graph", "weights"})


@dataclass(frozen=True, kw_only=True)
class Target:
    """A machine, or the machines that an engine is for.

    An engine's fields are what it wants: empty is any, "8.6, 8.9" one of these, "580.95+" this or newer.
    """

    backend: str
    version: str
    gpu: str
    compute_capability: str
    driver: str

    def takes(self, compute_capability: str) -> bool:
        """Whether an engine that wants this may run on GPUs of that compute capability, such as "8.7"."""
        return _accepts("compute_capability", self.compute_capability, compute_capability)


_OF_A_TARGET = frozenset(field.name for field in dataclasses.fields(Target))


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Which graph, over which weights: digests, or `STRIPPED` where a plan holds no weights."""

    component: str
    variant: str
    graph: str
    weights: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What an engine is built from, for whom, and how: two of the same recipe are the same engine.

    `precision` is what the graph computes in, `flags` are the build's options that leave a mark on the plan.
    """

    source: Graph
    target: Target
    precision: str
    profiles: tuple[Profile, ...]
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A file name that says the component, and everything else as a digest."""
        text = json.dumps(self.to_record(), sort_keys=True)
        label = f"{self.source.component}.{self.source.variant}".rstrip(".")
        return f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:20]}"

    def to_record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"schema": SCHEMA} | dataclasses.asdict(self) | {"profiles": [p.to_record() for p in self.profiles]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Recipe:
        """The way back; AttributeError, KeyError, TypeError or ValueError where it is none."""
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']}, this version reads {SCHEMA}")
        return cls(
            source=Graph(**record["source"]),
            target=Target(**record["target"]),
            precision=record["precision"],
            profiles=tuple(Profile.from_record(profile) for profile in record["profiles"]),
            flags=tuple(record["flags"]),
        )

    def differences(self, source: Graph, here: Target) -> list[str]:
        """What of this engine is not as this graph and this machine want it, in words; empty where it may be loaded."""
        has, wants = (
            dataclasses.asdict(graph) | dataclasses.asdict(target)
            for graph, target in ((self.source, self.target), (source, here))
        )
        differing = [name for name in has if has[name] != wants[name] and not _accepts(name, has[name], wants[name])]
        return [f"{_WORDS[name]} {_shown(name, has[name])}, here {_shown(name, wants[name])}" for name in differing]


def _accepts(name: str, wanted: str, found: str) -> bool:
    """`wanted` is a field of an engine, `found` another value of it, of a machine or a bundle."""
    if name not in _OF_A_TARGET:
        return name == "weights" and wanted == STRIPPED
    if wanted.endswith("+"):
        return found != "" and _numbers(found) >= _numbers(wanted[:-1])
    return wanted == "" or found in wanted.split(", ")


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _shown(name: str, value: str) -> str:
    if name in _DIGESTS:
        return value[:12]
    return value or "none"
