from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediffusion.engines.errors import OutOfMemory, UsageError
from edgediffusion.engines.spec import Array
from edgediffusion.runtime import NumpyNoise, Pipeline
from edgediffusion.runtime import batches as batches_module
from edgediffusion.runtime.batches import SmallerBatch, draw, part
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.noise import NOISES

from . import conftest
from .conftest import Opened


@pytest.fixture
def pipeline(bundle_path: Path, opened: Opened) -> Pipeline:
    return Pipeline.load(bundle_path)


def pixels(images: list[Any]) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(image.image) for image in images])


def batches(opened: Opened) -> list[int]:
    """How many pictures each call of the UNet was for, one step at a time."""
    return [len(feeds["sample"]) // 2 for name, feeds in opened.calls if name == "unet"]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A UNet for so many pictures and no more, as an engine says it."""

    def limit(pictures: int) -> None:
        def unet(feeds: Mapping[str, Array]) -> dict[str, Array]:
            if len(feeds["sample"]) > 2 * pictures:
                raise OutOfMemory("unet: out of memory on cuda")
            return whole(feeds)

        monkeypatch.setitem(conftest.FUNCTIONS, "unet", unet)

    whole = conftest.FUNCTIONS["unet"]
    return limit


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("scheduler", ["euler", "euler_a", "dpmpp_sde"])
def test_a_picture_is_the_same_in_any_batch(noise: str, scheduler: str, pipeline: Pipeline) -> None:
    """Exactly, where the engines compute row by row."""
    run = pipeline.steps("a car", seed=5, noise=noise, scheduler=scheduler, num_inference_steps=3, num_images=5)
    together = list(draw(run))
    for batch_size in (1, 2, 3, 7):
        images = list(draw(dataclasses.replace(run, batch_size=batch_size)))
        np.testing.assert_array_equal(pixels(images), pixels(together))
        assert [image.parameters for image in images] == [image.parameters for image in together]
    (alone,) = pipeline("a car", seed=8, noise=noise, scheduler=scheduler, num_inference_steps=3)
    np.testing.assert_array_equal(pixels([alone])[0], pixels(together)[3])


def test_given_latents_are_shared_out(pipeline: Pipeline) -> None:
    noise = NumpyNoise(3, 3).normal((4, 2, 2))
    together = pipeline("a car", latents=noise, num_images=3)
    np.testing.assert_array_equal(
        pixels(pipeline("a car", latents=noise, num_images=3, batch_size=2)), pixels(together)
    )


def test_as_many_at_once_as_told(pipeline: Pipeline, opened: Opened) -> None:
    pipeline("x", num_inference_steps=1, num_images=5, batch_size=2)
    assert batches(opened) == [2, 2, 1]


def test_memory_runs_out_and_nothing_is_lost(pipeline: Pipeline, opened: Opened, memory: Callable[[int], None]) -> None:
    together = pipeline("x", seed=0, num_inference_steps=1, num_images=7)
    opened.calls.clear()
    opened.names.clear()
    memory(2)
    with pytest.warns(SmallerBatch, match="out of memory with . pictures at once; going on with ") as caught:
        images = pipeline("x", seed=0, num_inference_steps=1, num_images=7)
    assert batches(opened) == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert opened.names == ["unet", "unet"]  # anew: an engine keeps what it had taken for those that were too many
    assert [str(warning.message).split()[-1] for warning in caught] == ["3", "1"]
    np.testing.assert_array_equal(pixels(images), pixels(together))


def test_a_picture_that_does_not_fit_alone(pipeline: Pipeline, memory: Callable[[int], None]) -> None:
    memory(0)
    with pytest.raises(OutOfMemory, match="unet: out of memory on cuda"):
        pipeline("x", num_inference_steps=1)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """A machine of so many bytes, of which every call of the UNet keeps a thousand for each picture."""
    state: dict[str, int | None] = {"free": 10_000_000, "resident": 0, "one": 1_000_000}
    whole = conftest.FUNCTIONS["unet"]

    def unet(feeds: Mapping[str, Array]) -> dict[str, Array]:
        state["resident"] = max(state["resident"] or 0, len(feeds["sample"]) // 2 * (state["one"] or 0))
        return whole(feeds)

    monkeypatch.setitem(conftest.FUNCTIONS, "unet", unet)
    monkeypatch.setattr(
        batches_module, "free_memory", lambda: state["free"] and state["free"] - (state["resident"] or 0)
    )
    monkeypatch.setattr(batches_module, "resident_memory", lambda: state["resident"])
    return state


def test_auto_fills_the_memory(pipeline: Pipeline, opened: Opened, machine: dict[str, int | None]) -> None:
    """A step of one picture says what one takes; 0.7 of the ten million bytes are for seven of them."""
    images = pipeline("x", num_inference_steps=1, num_images=20, batch_size="auto")
    assert len(images) == 20
    assert batches(opened) == [1, 7, 7, 6]
    opened.calls.clear()
    pipeline("x", num_inference_steps=1, num_images=20, batch_size="auto")
    assert batches(opened)[0] == 9  # what it holds, and 0.7 of the rest
    assert machine["resident"] == 9_000_000


def test_auto_learns_from_what_was_drawn_before(
    pipeline: Pipeline, opened: Opened, machine: dict[str, int | None]
) -> None:
    pipeline("x", num_inference_steps=1, num_images=2)
    opened.calls.clear()
    pipeline("x", num_inference_steps=1, num_images=20, batch_size="auto")
    assert batches(opened)[0] == 7  # the two that it holds, and 0.7 of the room for eight others


def test_auto_takes_larger_pictures_to_cost_more(
    pipeline: Pipeline, opened: Opened, machine: dict[str, int | None]
) -> None:
    pipeline("x", num_inference_steps=1, num_images=2, batch_size="auto")
    opened.calls.clear()
    pipeline("x", num_inference_steps=1, num_images=4, width=32, batch_size="auto")
    assert batches(opened) == [1, 1, 1, 1]


@pytest.mark.parametrize(("free", "one", "wanted"), [(None, 0, 1), (0, 0, 1), (1 << 40, 0, 64)])
def test_the_limits_of_auto(
    free: int | None, one: int, wanted: int, pipeline: Pipeline, opened: Opened, machine: dict[str, int | None]
) -> None:
    machine |= {"free": free, "one": one}
    pipeline("x", num_inference_steps=1, num_images=65, batch_size="auto")
    assert max(batches(opened)) == wanted


def test_no_trial_where_it_would_build_an_engine(bundle_path: Path, opened: Opened) -> None:
    Pipeline.load(bundle_path, backend="tensorrt")("x", num_inference_steps=1, num_images=3, batch_size="auto")
    assert batches(opened) == [3]


def test_one_picture_needs_no_trial(pipeline: Pipeline, opened: Opened) -> None:
    pipeline("x", num_inference_steps=1, batch_size="auto")
    assert batches(opened) == [1]


def test_part_of_a_run(pipeline: Pipeline) -> None:
    run = part(pipeline.steps("x", seed=3, num_images=5, batch_size=2), 2, 2)
    assert (run.seed, run.num_images, run.batch_size) == (5, 2, None)


@pytest.mark.parametrize("batch_size", [0, -1, "all"])
def test_a_batch_size_that_is_none(batch_size: int | str, pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match=f"batch_size {batch_size}; wanted 1 or more, or auto"):
        pipeline.steps("x", batch_size=batch_size)


def test_the_command(bundle_path: Path, opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = f"--num-images 3 --num-inference-steps 1 --bundle {bundle_path} -o {tmp_path}/a.png"
    assert main(["generate", "x", *options.split(), "--batch-size", "2"]) == 0
    assert batches(opened) == [2, 1]
    assert [Path(line).name for line in capsys.readouterr().out.split()] == ["a-1.png", "a-2.png", "a-3.png"]
    assert main(["generate", "x", *options.split(), "--batch-size", "many"]) == 2
    assert "argument --batch-size: 'many', wanted a number or auto" in capsys.readouterr().err


@pytest.mark.parametrize("noise", ["numpy"])
def test_the_builtin_model_draws_the_same_in_any_batch(noise: str) -> None:
    """To one part in 255: ONNX Runtime's products of matrices add in another order where there are more rows."""
    with Pipeline.load() as pipeline:
        run = pipeline.steps("a red apple", seed=0, noise=noise, num_inference_steps=4, num_images=3)
        together = pixels(list(draw(run))).astype(int)
        singles = pixels(list(draw(dataclasses.replace(run, batch_size=1)))).astype(int)
    assert np.abs(together - singles).max() <= 1


def test_pictures_of_prompts_of_unequal_length_are_those_that_each_would_be_alone(
    pipeline: Pipeline, opened: Opened
) -> None:
    prompts = ["a red apple", "a car", "a rocket " * 40, "a [car:" + "rocket " * 80 + ":0.5]"]
    together = pipeline(prompts, seed=3, num_inference_steps=2)
    assert batches(opened) == [2, 2, 1, 1, 1, 1]
    alone = [pipeline(prompt, seed=3 + k, num_inference_steps=2)[0] for k, prompt in enumerate(prompts)]
    assert [picture.parameters for picture in together] == [picture.parameters for picture in alone]
    assert np.abs(pixels(together).astype(int) - pixels(alone)).max() <= 1  # sums in another order
