from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.families import FAMILIES
from edgediffusion.runtime.guidance import NO_GUIDANCE, classifier_free, instruct
from edgediffusion.runtime.pipelines import PIPELINES

from .conftest import Opened


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


def test_rescaled_to_the_prompts_deviation() -> None:
    """arXiv:2305.08891 eqs. 15 and 16 in float64, for each picture by itself."""
    rng = np.random.default_rng(0)
    uncond, cond = rng.normal(size=(2, 3, 4, 5, 6)).astype(np.float32) * np.array([1, 3, 9]).reshape(1, 3, 1, 1, 1)
    guided = uncond + 7.5 * (cond - uncond)
    for k in range(3):
        rescaled = guided[k] * cond[k].std() / guided[k].std()
        expected = 0.7 * rescaled + 0.3 * guided[k]
        found = classifier_free(7.5, 0.7)(np.stack([uncond[k], cond[k]]).astype(np.float32))
        np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)  # float32 against float64
    assert found.dtype == np.float32


def guided_steps(opened: Opened) -> list[int]:
    """The rows of the UNet's batch in each call."""
    return [len(feeds["sample"]) for name, feeds in opened.calls if name == "unet"]


def test_guidance_in_an_interval_of_steps(bundle_path: Path, opened: Opened) -> None:
    with Pipeline.load(bundle_path) as pipeline:
        settings: Any = {"seed": 0, "num_images": 2, "num_inference_steps": 5}
        (first, _) = pipeline("a red apple", "blue", guidance_interval=(0.2, 0.8), **settings)
        assert guided_steps(opened) == [2, 4, 4, 4, 2]
        assert first.parameters.guidance_interval == (0.2, 0.8)
        opened.calls.clear()
        whole: list[Any] = [{}, {"guidance_interval": (0, 1)}]
        pictures = [np.asarray(pipeline("a car", **settings, **more)[0].image) for more in whole]
        assert guided_steps(opened) == [4] * 10
        np.testing.assert_array_equal(pictures[0], pictures[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_rescale": 1.5}, "guidance_rescale 1.5; wanted 0 to 1"),
        ({"guidance_interval": (0.8, 0.2)}, "guidance_interval 0.8, 0.2; wanted two fractions of the steps, such as"),
        ({"guidance_interval": (0.8,)}, "guidance_interval 0.8; wanted two fractions of the steps, such as 0.2, 0.8"),
    ],
)
def test_guidance_that_cannot_be(bundle_path: Path, opened: Opened, settings: Any, message: str) -> None:
    with Pipeline.load(bundle_path) as pipeline, pytest.raises(UsageError, match=message):
        pipeline.steps("a car", **settings)


def test_the_rows_follow_the_branches() -> None:
    negative_prompt, prompt = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    np.testing.assert_array_equal(
        classifier_free(2).texts(negative_prompt, prompt, 2), np.repeat([[0], [1]], 2, 0) * prompt
    )
    np.testing.assert_array_equal(NO_GUIDANCE.texts(negative_prompt, prompt, 2), np.ones((2, 3)))
    each = np.array([[1.0], [2.0]], np.float32)
    assert classifier_free(2).texts(-each, each, 2)[:, 0].tolist() == [-1, -2, 1, 2]


def test_further_channels_are_shown_to_every_branch_but_one_of_pix2pix() -> None:
    image = np.ones((2, 3), np.float32)
    assert classifier_free(2).channels(image)[:, 0].tolist() == [1, 1, 1, 1]
    assert instruct(2, 1).channels(image)[:, 0].tolist() == [1, 1, 1, 1, 0, 0]


def test_from_nothing_through_the_picture_to_the_prompt() -> None:
    guidance = instruct(3.0, 1.5)
    assert guidance.texts(np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32), 1)[:, 0].tolist() == [1, 0, 0]
    text, image, uncond = 5.0, 3.0, 2.0
    guided = guidance(np.array([text, image, uncond], np.float32).reshape(3, 1, 1, 1))
    assert guided.item() == 2 + 3 * (5 - 3) + 1.5 * (3 - 2)


@pytest.mark.parametrize(("scale", "image_scale"), [(1.0, 1.5), (7.5, 0.9)])
def test_pix2pix_without_guidance(scale: float, image_scale: float) -> None:
    assert instruct(scale, image_scale) is NO_GUIDANCE


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_says_how_many_branches_its_pipelines_have(family: Any) -> None:
    pipeline = SimpleNamespace(bundle=SimpleNamespace(manifest=SimpleNamespace(takes_guidance_scale=False)))
    run: Any = SimpleNamespace(guidance_scale=7.5, guidance_rescale=0.0, image_guidance_scale=1.5, pipeline=pipeline)
    assert {PIPELINES[name].guidance(run).branches for name in family.pipelines} == {family.branches}
