from __future__ import annotations

import numpy as np
import pytest

from edgediffusion.runtime.guidance import guide


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 2.0), (1.0, 5.0), (3.0, 11.0)])
def test_from_the_unconditional_through_the_conditional(scale: float, expected: float) -> None:
    noise_pred = np.array([2, 2, 5, 5], np.float32).reshape(4, 1, 1, 1)
    guided = guide(noise_pred, scale)
    assert guided.dtype == np.float32
    np.testing.assert_array_equal(guided, np.full((2, 1, 1, 1), expected, np.float32))
