"""The protocol that every backend fulfils, and the checks that all of them share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from .errors import GraphMismatch, UsageError
from .spec import Array, GraphSpec

Report = Callable[[float], None]
Reports = Callable[[str], Report]  # from an engine's name
Says = Callable[[str], None]


def silent(name: str) -> Report:
    """Reports that go nowhere."""
    return lambda fraction: None


def unsaid(line: str) -> None:
    """What is said to nobody."""


class Engine(Protocol):
    """One graph, ready to run."""

    @property
    def spec(self) -> GraphSpec:
        """Names, dtypes and symbolic shapes of the inputs and outputs."""
        ...

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once. The arrays returned belong to the caller.

        Raises:
            GraphMismatch: `feeds` and the constants bound do not fit `spec`.
            EngineError: the graph fails while it runs.
            UsageError: the engine is closed.
        """
        ...

    def each(self, feeds: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """The outputs for each of `feeds`, in turn; errors as when it is called.

        Where there is a device, it computes the next ones while those before are copied out and used.
        """
        ...

    def bind(self, constants: Mapping[str, Array]) -> Engine:
        """An engine over the same graph for which these inputs are given; where there is a device, they stay on it.

        The two are closed separately; the graph's memory goes with the last of them.
        """
        ...

    def close(self) -> None:
        """Free everything the engine holds. May be called twice."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Building:
    """For backends whose engines are built: whether that may happen when one is lacking, which can take minutes.

    `precision` is what the graph computes in. `sha256` are the digests of files that are known already: weights of
    gigabytes need not be read for them once more. `reports` makes what is told the fraction of a build that is done.
    `says` is told, for each engine, which device "auto" took and why, in one line.
    """

    allowed: bool = True
    precision: str = "float32"
    sha256: Mapping[Path, str] = field(default_factory=dict)
    reports: Reports = silent
    says: Says = unsaid


Run = Callable[[Mapping[str, Array]], dict[str, Array]]


class HostEngine:
    """An `Engine` over `run`, a function from checked host arrays to host arrays; `run` holds the graph."""

    def __init__(self, spec: GraphSpec, run: Run) -> None:
        self._spec = spec
        self._run: Run | None = run
        self._constants: dict[str, Array] = {}
        self._fitting: tuple[set[object], set[object]] = set(), set()  # dtypes and shapes of inputs and outputs

    @property
    def spec(self) -> GraphSpec:
        """Names, dtypes and symbolic shapes of the inputs and outputs."""
        return self._spec

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Engine`."""
        outputs = self._running()(self._merged(feeds))
        _check_new(self._fitting[1], outputs, self._spec.check_outputs)
        return outputs

    def each(self, feeds: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """See `Engine`. One after the other."""
        return map(self, feeds)

    def _running(self) -> Run:
        if self._run is None:
            raise UsageError(f"{self._spec.name}: this engine is closed; open it again")
        return self._run

    def _merged(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All inputs of the graph, checked."""
        self._refuse_bound(feeds)
        merged = {**self._constants, **feeds}
        _check_new(self._fitting[0], merged, self._spec.check_feeds)
        return merged

    def bind(self, constants: Mapping[str, Array]) -> HostEngine:
        """See `Engine`. The constants are copied; nobody can write to the copies."""
        self._refuse_bound(constants)
        self._spec.check_feeds(constants, partial=True)
        copies = {name: np.array(value) for name, value in constants.items()}
        for value in copies.values():
            value.flags.writeable = False
        bound = copy.copy(self)
        bound._constants = self._constants | copies
        return bound

    def close(self) -> None:
        """See `Engine`."""
        self._run = None
        self._constants = {}

    def __enter__(self) -> HostEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_bound(self, feeds: Mapping[str, Array]) -> None:
        if twice := feeds.keys() & self._constants.keys():
            raise GraphMismatch(f"{self._spec.name}: input {', '.join(sorted(twice))} is bound already; leave it out")


def _check_new(fitting: set[object], values: Mapping[str, Array], check: Callable[[Mapping[str, Array]], None]) -> None:
    """Check what differs from the calls before: a check takes as long as a copy to the device, once in every step."""
    kinds = tuple((name, value.dtype, value.shape) for name, value in values.items())
    if kinds not in fitting:
        check(values)
        fitting.add(kinds)


def unsent(feeds: Mapping[str, Array], sent: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    """Those of `feeds` to be copied to a device, which `sent` then tells of: what lies there since the last call.

    An array that nobody can write to, as `Engine.bind` makes them, is copied once.
    """
    for name, array in feeds.items():
        final = array.base is None and not array.flags.writeable
        if not (final and sent.get(name) is array):
            yield name, array
            sent[name] = array
