"""An engine over a Python function, for tests that need no weights and no backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .base import HostEngine
from .spec import Array, GraphSpec


class FakeEngine(HostEngine):
    """`function` in place of a graph, behind the same checks as a real backend. Its outputs are copied."""

    def __init__(self, spec: GraphSpec, function: Callable[[Mapping[str, Array]], Mapping[str, Array]]) -> None:
        super().__init__(spec, lambda feeds: {name: np.array(value) for name, value in function(feeds).items()})
