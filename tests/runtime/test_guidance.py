from __future__ import annotations

import numpy as np
import pytest

from edgediffusion.runtime.guidance import NO_GUIDANCE, classifier_free


@pytest.mark.parametrize(("scale", "expected"), [(1.5, 6.5), (3.0, 11.0)])
def test_from_the_unconditional_through_the_conditional(scale: float, expected: float) -> None:
    noise_pred = np.array([2, 2, 5, 5], np.float32).reshape(4, 1, 1, 1)
    guided = classifier_free(scale)(noise_pred)
    assert guided.dtype == np.float32
    np.testing.assert_array_equal(guided, np.full((2, 1, 1, 1), expected, np.float32))


@pytest.mark.parametrize("scale", [1.0, 0.0, -2.0])
def test_a_scale_of_one_or_less_asks_for_the_prompt_alone(scale: float) -> None:
    assert classifier_free(scale) is NO_GUIDANCE
    noise_pred = np.arange(2, dtype=np.float32).reshape(2, 1, 1, 1)
    np.testing.assert_array_equal(NO_GUIDANCE(noise_pred), noise_pred)


def test_the_rows_follow_the_branches() -> None:
    negative_prompt, prompt = np.zeros(3, np.float32), np.ones(3, np.float32)
    np.testing.assert_array_equal(
        classifier_free(2).rows(negative_prompt, prompt, 2), np.repeat([[0], [1]], 2, 0) * prompt
    )
    np.testing.assert_array_equal(NO_GUIDANCE.rows(negative_prompt, prompt, 2), [prompt, prompt])
