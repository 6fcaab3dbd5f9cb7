from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgediffusion.runtime.families import FAMILIES
from edgediffusion.runtime.guidance import NO_GUIDANCE, classifier_free, instruct
from edgediffusion.runtime.pipelines import PIPELINES


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
        classifier_free(2).texts(negative_prompt, prompt, 2), np.repeat([[0], [1]], 2, 0) * prompt
    )
    np.testing.assert_array_equal(NO_GUIDANCE.texts(negative_prompt, prompt, 2), [prompt, prompt])


def test_further_channels_are_shown_to_every_branch_but_one_of_pix2pix() -> None:
    image = np.ones((2, 3), np.float32)
    assert classifier_free(2).channels(image)[:, 0].tolist() == [1, 1, 1, 1]
    assert instruct(2, 1).channels(image)[:, 0].tolist() == [1, 1, 1, 1, 0, 0]


def test_from_nothing_through_the_picture_to_the_prompt() -> None:
    guidance = instruct(3.0, 1.5)
    assert guidance.texts(np.zeros(1, np.float32), np.ones(1, np.float32), 1)[:, 0].tolist() == [1, 0, 0]
    text, image, uncond = 5.0, 3.0, 2.0
    guided = guidance(np.array([text, image, uncond], np.float32).reshape(3, 1, 1, 1))
    assert guided.item() == 2 + 3 * (5 - 3) + 1.5 * (3 - 2)


@pytest.mark.parametrize(("scale", "image_scale"), [(1.0, 1.5), (7.5, 0.9)])
def test_pix2pix_without_guidance(scale: float, image_scale: float) -> None:
    assert instruct(scale, image_scale) is NO_GUIDANCE


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_says_how_many_branches_its_pipelines_have(family: Any) -> None:
    pipeline = SimpleNamespace(bundle=SimpleNamespace(manifest=SimpleNamespace(takes_guidance_scale=False)))
    run: Any = SimpleNamespace(guidance_scale=7.5, image_guidance_scale=1.5, pipeline=pipeline)
    assert {PIPELINES[name].guidance(run).branches for name in family.pipelines} == {family.branches}
