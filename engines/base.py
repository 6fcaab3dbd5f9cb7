"""The protocol that every backend fulfils."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

from .spec import Array, GraphSpec


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
        """
        ...

    def bind(self, constants: Mapping[str, Array]) -> Engine:
        """An engine over the same graph for which these inputs are given; where there is a device, they stay on it."""
        ...

    def close(self) -> None:
        """Free everything the engine holds. May be called twice."""
        ...

    def __enter__(self) -> Engine: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
