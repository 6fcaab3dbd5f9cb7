from __future__ import annotations

import numpy as np
import pytest

from edgediffusion.engines.errors import GraphMismatch
from edgediffusion.engines.fake import FakeEngine
from edgediffusion.engines.spec import GraphSpec, TensorSpec

SPEC = GraphSpec("half", (TensorSpec("x", "float32", ("n",)),), (TensorSpec("y", "float32", ("n",)),))
ONES = np.ones(3, np.float32)


def test_the_array_of_the_function_is_not_the_callers() -> None:
    engine = FakeEngine(SPEC, lambda feeds: {"y": ONES})
    engine({"x": ONES})["y"] += 1
    np.testing.assert_array_equal(engine({"x": ONES})["y"], np.ones(3))


def test_a_function_that_does_not_fit_the_spec() -> None:
    with pytest.raises(GraphMismatch, match=r"half\.y: dtype float64, expected float32"):
        FakeEngine(SPEC, lambda feeds: {"y": feeds["x"].astype(np.float64)})({"x": ONES})
    with pytest.raises(GraphMismatch, match="half: missing output y"):
        FakeEngine(SPEC, lambda feeds: {})({"x": ONES})
