from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediffusion import __version__
from edgediffusion.engines.errors import BundleError, RunCancelled, UnknownName, UsageError
from edgediffusion.engines.files import sha256_of
from edgediffusion.runtime import NumpyNoise, Parameters, Pipeline, denoise
from edgediffusion.runtime import pipeline as pipeline_module
from edgediffusion.runtime.arrays import F32
from edgediffusion.runtime.denoiser import Denoiser
from edgediffusion.runtime.guidance import NO_GUIDANCE
from edgediffusion.runtime.manifest import Manifest
from edgediffusion.runtime.metadata import read_parameters
from edgediffusion.runtime.noise_torch import TorchCpuNoise
from edgediffusion.runtime.schedulers import make_scheduler

from .conftest import Opened


@pytest.fixture
def pipeline(bundle_path: Path, opened: Opened) -> Pipeline:
    return Pipeline.load(bundle_path)


def pixels(images: list[Any]) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(image.image) for image in images])


def test_a_picture_and_its_parameters(pipeline: Pipeline, tmp_path: Path) -> None:
    (image,) = pipeline("a red apple", seed=0)
    assert image.image.size == (16, 16)
    assert image.image.mode == "RGB"
    image.save(tmp_path / "apple.png")
    assert read_parameters(tmp_path / "apple.png") == Parameters(
        prompt="a red apple",
        negative_prompt="",
        num_inference_steps=20,
        scheduler="euler",
        guidance_scale=7.5,
        seed=0,
        width=16,
        height=16,
        model="a test",
        version=f"edgediffusion {__version__}",
        noise="numpy",
        model_hash=pipeline.bundle.manifest.model_hash,
    )
    with pytest.raises(UsageError, match=r"apple\.gif: pictures are written as \.png"):
        image.save(tmp_path / "apple.gif")
    assert list(tmp_path.glob("*.gif")) == []


def test_the_seed_decides(pipeline: Pipeline) -> None:
    zero = pixels(pipeline("a red apple", seed=0))
    np.testing.assert_array_equal(zero, pixels(pipeline("a red apple", seed=0)))
    assert (zero != pixels(pipeline("a red apple", seed=1))).any()
    assert (zero != pixels(pipeline("a blue car", seed=0))).any()
    assert (zero != pixels(pipeline("a red apple", "a blue car", seed=0))).any()


def test_without_a_seed_there_is_one_and_it_is_told(pipeline: Pipeline) -> None:
    (first,), (second,) = pipeline("a red apple"), pipeline("a red apple")
    assert first.parameters.seed is not None
    assert first.parameters.seed != second.parameters.seed
    np.testing.assert_array_equal(pixels([first]), pixels(pipeline("a red apple", seed=first.parameters.seed)))


def test_a_batch_is_its_pictures_one_by_one(pipeline: Pipeline) -> None:
    """Exactly so here: NumPy does the same to every element. A backend may sum in another order for another batch."""
    batch = pipeline("a red apple", "a car", seed=5, num_images=4, num_inference_steps=7)
    assert [image.parameters.seed for image in batch] == [5, 6, 7, 8]
    for k in range(4):
        single = pipeline("a red apple", "a car", seed=5 + k, num_inference_steps=7)
        np.testing.assert_array_equal(pixels([batch[k]]), pixels(single))


def test_size(pipeline: Pipeline) -> None:
    (image,) = pipeline("a red apple", seed=0, width=24, height=8, num_inference_steps=1)
    assert image.image.size == (24, 8)


def test_noise_of_torch(pipeline: Pipeline) -> None:
    (picture,) = pipeline("a red apple", seed=3, noise="torch-cpu")
    (same,) = pipeline("a red apple", latents=TorchCpuNoise(3).normal((4, 2, 2)))
    np.testing.assert_array_equal(pixels([picture]), pixels([same]))
    assert Parameters.from_json(picture.parameters.to_json()).noise == "torch-cpu"
    with pytest.raises(UnknownName, match="unknown noise 'torch'; known: numpy, torch-cpu, torch-cuda"):
        pipeline("a red apple", noise="torch")


@pytest.mark.parametrize("scheduler", ["euler", "dpmpp_2m"])
def test_sigmas(pipeline: Pipeline, scheduler: str) -> None:
    run = pipeline.steps("a red apple", seed=3, num_inference_steps=3, scheduler=scheduler, sigmas="karras")
    karras = pipeline.scheduler_config | {"use_karras_sigmas": True}
    assert run.tables.sigmas.tolist() == make_scheduler(scheduler, karras, 3).sigmas.tolist()
    (picture,) = pipeline("x", num_inference_steps=3, scheduler=scheduler, sigmas=[14.0, 3.5, 0.5])
    assert Parameters.from_json(picture.parameters.to_json()).sigmas == "14.0,3.5,0.5"
    with pytest.raises(UnknownName, match="unknown sigmas 'carras'; known: ays"):
        pipeline("a red apple", scheduler=scheduler, sigmas="carras")


def test_latents_stand_for_the_seeds_noise(pipeline: Pipeline) -> None:
    noise = NumpyNoise(3, 2).normal((4, 2, 2))
    given = pipeline("a red apple", latents=noise, num_images=2)
    np.testing.assert_array_equal(pixels(given), pixels(pipeline("a red apple", seed=3, num_images=2)))
    assert [image.parameters.seed for image in given] == [None, None]
    np.testing.assert_array_equal(noise, NumpyNoise(3, 2).normal((4, 2, 2)))


def test_step_by_step(pipeline: Pipeline, opened: Opened) -> None:
    run = pipeline.steps("a red apple", seed=0, num_inference_steps=5)
    assert len(run) == 5
    assert opened.calls == []
    steps = list(run)
    assert [step.index for step in steps] == [0, 1, 2, 3, 4]
    assert [step.timestep for step in steps] == [999, 749.25, 499.5, 249.75, 0]
    assert {(step.latents.shape, step.latents.dtype.name) for step in steps} == {((1, 4, 2, 2), "float32")}
    assert pipeline.decode(steps[2].latents)[0].size == (16, 16)
    final = pixels(pipeline("a red apple", seed=0, num_inference_steps=5))
    np.testing.assert_array_equal(pixels(run.images(steps[-1].latents)), final)
    np.testing.assert_array_equal(pixels(run.images(list(run)[-1].latents)), final)


def test_guidance_is_one_call_with_the_unconditional_half_first(pipeline: Pipeline, opened: Opened) -> None:
    pipeline("a red apple", "a car", seed=0, num_inference_steps=2, num_images=2)
    (_, words), (_, guided), _, *decoded = opened.calls
    np.testing.assert_array_equal(words["input_ids"], pipeline.tokenizers["text_encoder"](["a car", "a red apple"]))
    assert guided["sample"].shape == (4, 4, 2, 2)
    np.testing.assert_array_equal(guided["sample"][:2], guided["sample"][2:])
    # Euler starts at sigma = 14.6 or so and shows the UNet sigma / sqrt(sigma^2 + 1) of the noise: 0.998.
    np.testing.assert_allclose(guided["sample"][:2], NumpyNoise(0, 2).normal((4, 2, 2)), rtol=0.005)
    negative, positive = pipeline.bundle.engine("text_encoder")(words)["last_hidden_state"]
    for row, embeds in zip(guided["encoder_hidden_states"], [negative, negative, positive, positive], strict=True):
        np.testing.assert_array_equal(row, embeds)
    assert [name for name, _ in decoded] == ["vae_decoder", "vae_decoder"]


@pytest.mark.parametrize("guidance_scale", [1.0, 0.0, -2.0])
def test_no_guidance_halves_the_work(pipeline: Pipeline, opened: Opened, guidance_scale: float) -> None:
    pipeline("a red apple", "a car", seed=0, num_inference_steps=1, guidance_scale=guidance_scale)
    (unet,) = [feeds for name, feeds in opened.calls if name == "unet"]
    assert unet["sample"].shape == (1, 4, 2, 2)


def test_the_loop_hands_each_step_what_the_one_before_left(pipeline: Pipeline, opened: Opened) -> None:
    run = pipeline.steps("a red apple", seed=0, num_inference_steps=6, scheduler="dpmpp_2m", guidance_scale=1)
    steps = list(run)
    embeds = opened.calls[1][1]["encoder_hidden_states"]
    latents = NumpyNoise(0).normal((4, 2, 2))
    history: tuple[F32, ...] = ()
    for i, step in enumerate(steps):
        feeds = {"sample": latents, "timestep": run.tables.timesteps[[i]], "encoder_hidden_states": embeds}
        output = pipeline.bundle.engine("unet")(feeds)["out_sample"]
        latents, history = run.tables.step(output, i, latents, history, None)
        np.testing.assert_array_equal(step.latents, latents)


def test_a_run_resumed_in_the_middle(pipeline: Pipeline, opened: Opened) -> None:
    run = pipeline.steps("a red apple", seed=0, num_inference_steps=6, scheduler="dpmpp_2m", guidance_scale=1)
    whole = list(run)
    embeds = opened.calls[1][1]["encoder_hidden_states"]
    for cut in whole[:-1]:
        predict = Denoiser(pipeline.bundle.engine("unet").bind({"encoder_hidden_states": embeds}), NO_GUIDANCE)
        *_, last = denoise(predict, run.tables, cut.latents, NumpyNoise(0), start=cut.index + 1, history=cut.history)
        assert last.index == 5
        np.testing.assert_array_equal(last.latents, whole[-1].latents)


def test_a_run_stopped_early(pipeline: Pipeline) -> None:
    run = pipeline.steps("a red apple", seed=0, num_inference_steps=6)
    latents = NumpyNoise(0).normal((4, 2, 2))
    steps = denoise(lambda sample, timestep, i: sample, run.tables, latents, NumpyNoise(0), start=2, stop=4)
    assert [step.index for step in steps] == [2, 3]


def test_a_noisy_sampler_is_given_noise() -> None:
    class Noisy:
        timesteps = np.array([9, 4], np.float32)
        sigmas = np.array([2.0, 1.0, 0.0])
        init_noise_sigma = 1.0

        def draws_noise(self, i: int) -> bool:
            return True

        def scale_model_input(self, latents: Any, i: int) -> Any:
            return latents

        def add_noise(self, x0: Any, noise: Any, i: int) -> Any:
            return noise

        def x0(self, model_output: Any, i: int, latents: Any) -> Any:
            return latents

        def step(self, model_output: Any, i: int, latents: Any, history: tuple[Any, ...], noise: Any) -> Any:
            return noise, ()

    run = denoise(lambda sample, timestep, i: sample, Noisy(), np.zeros((2, 4, 2, 2), np.float32), NumpyNoise(7, 2))
    stream = NumpyNoise(7, 2)
    for step in run:
        np.testing.assert_array_equal(step.latents, stream.normal((4, 2, 2)))


def test_a_guidance_scale_of_another_number_type(pipeline: Pipeline) -> None:
    (image,) = pipeline("a red apple", seed=0, guidance_scale=np.float64(7.5))
    assert image.parameters.to_json() == pipeline("a red apple", seed=0)[0].parameters.to_json()


def test_an_empty_prompt_is_unconditional(pipeline: Pipeline) -> None:
    guided = pipeline("", seed=0)
    np.testing.assert_array_equal(pixels(guided), pixels(pipeline("", seed=0, guidance_scale=1)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps 0; wanted 1 to 1000"),
        ({"num_inference_steps": -3}, "num_inference_steps -3; wanted 1 to 1000"),
        ({"num_inference_steps": 1001}, "num_inference_steps 1001; wanted 1 to 1000"),
        ({"num_images": 0}, "num_images 0; wanted 1 to 1000000"),
        ({"num_images": 1 << 31}, "num_images 2147483648; wanted 1 to 1000000"),
        ({"width": 0}, "width 0; wanted a positive multiple of 8, such as 8"),
        ({"width": 8 * 10**30}, "width 8000000000000000000000000000000; wanted 65536 at most"),
        ({"width": -8 * 10**400}, "width -8.*0; wanted a positive multiple of 8, such as 8"),
        ({"height": -8}, "height -8; wanted a positive multiple of 8, such as 8"),
        ({"width": 130}, "width 130; wanted a positive multiple of 8, such as 128"),
        ({"guidance_scale": math.nan}, "guidance_scale nan; wanted a finite number, such as 7.5"),
        ({"guidance_scale": math.inf}, "guidance_scale inf; wanted a finite number, such as 7.5"),
        ({"seed": -1}, "seed -1; wanted 0 or more"),
        (
            {"latents": np.zeros((1, 4, 3, 2), np.float32)},
            r"latents of shape \(1, 4, 3, 2\); wanted \(1, 4, 2, 2\) for num_images 1, width 16, height 16",
        ),
    ],
)
def test_arguments_that_cannot_be_used(pipeline: Pipeline, opened: Opened, arguments: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.steps("a red apple", **arguments)
    assert opened.calls == []


def test_an_unknown_scheduler_lists_the_known(pipeline: Pipeline) -> None:
    with pytest.raises(
        UnknownName, match=r"unknown scheduler 'eulerian'; known: DDIMScheduler, DDPMScheduler, .*euler"
    ):
        pipeline("a red apple", scheduler="eulerian")


def test_a_scheduler_config_of_an_unknown_class_or_none(pipeline: Pipeline) -> None:
    for config, name in (({"_class_name": "RePaintScheduler"}, "RePaintScheduler"), ({}, "")):
        pipeline.scheduler_config.pop("_class_name", None)
        pipeline.scheduler_config.update(config)
        with pytest.raises(UnknownName, match=f"unknown scheduler '{name}'; known: DDIMScheduler"):
            pipeline("a red apple")


@pytest.mark.parametrize(
    ("given", "name"), [(None, "euler"), ("DPMSolverMultistepScheduler", "dpmpp_2m"), ("ddim", "ddim")]
)
def test_the_scheduler(pipeline: Pipeline, given: str | None, name: str) -> None:
    (image,) = pipeline("a red apple", seed=0, scheduler=given, num_inference_steps=2)
    assert image.parameters.scheduler == name


def test_the_familys_scheduler_settings_hold(pipeline: Pipeline) -> None:
    # StableDiffusionPipeline sets steps_offset 1 and clip_sample False, whatever the config says.
    assert pipeline.steps("", scheduler="ddim", num_inference_steps=10).tables.timesteps[-1] == 1


def test_dynamic_shifting_follows_the_size(pipeline: Pipeline) -> None:
    pipeline.scheduler_config["use_dynamic_shifting"] = True
    for width, height, mu in ((256, 256, 0.5), (1024, 1024, 1.15), (512, 512, 0.63)):
        run = pipeline.steps("", scheduler="flow_euler", num_inference_steps=4, width=width, height=height)
        shifted = make_scheduler("flow_euler", pipeline.scheduler_config | {"mu": mu}, 4)
        np.testing.assert_allclose(run.tables.sigmas, shifted.sigmas)
    assert pipeline.scheduler_config.get("mu") is None


def test_missing_or_unknown_things_are_told_when_it_is_loaded(bundle_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown backend 'abacus'; known: "):
        Pipeline.load(bundle_path, backend="abacus")
    with pytest.raises(UnknownName, match="unknown device 'tpu'; known: "):
        Pipeline.load(bundle_path, device="tpu")
    with pytest.raises(BundleError, match="no bundle here"):
        Pipeline.load(bundle_path / "unet")


@pytest.mark.parametrize("name", ["text_encoder/model", "unet/diffusion_pytorch_model"])
def test_altered_weights_are_told_before_a_picture_of_them_is(bundle_path: Path, opened: Opened, name: str) -> None:
    weights = bundle_path / f"{name}.safetensors"
    weights.write_bytes(weights.read_bytes().upper())
    with Pipeline.load(bundle_path) as pipeline:
        with pytest.raises(BundleError, match="altered"):
            pipeline("a red apple", num_inference_steps=2)
        with pytest.raises(UsageError, match="closed"):
            opened.engines[name.split("/")[0]]({})
    with Pipeline.load(bundle_path) as pipeline, pytest.raises(BundleError, match="altered"):
        pipeline.bundle.verify()


def test_pictures_wait_for_digests_and_steps_do_not(
    bundle_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where not all steps are asked for."""
    done = threading.Event()

    def slow(path: Path) -> str:
        assert "unet/diff" not in str(path) or done.wait(60)
        return sha256_of(path)

    monkeypatch.setattr("edgediffusion.runtime.bundle.sha256_of", slow)
    with Pipeline.load(bundle_path) as pipeline:
        latents = next(iter(pipeline.steps("a red apple", num_inference_steps=2))).latents
        assert not done.is_set()
        threading.Timer(0.1, done.set).start()
        pipeline.decode(latents)
        assert done.is_set()


def test_closing_frees_the_engines(bundle_path: Path, opened: Opened) -> None:
    with Pipeline.load(bundle_path) as pipeline:
        assert sorted(opened.names) == ["text_encoder", "unet", "vae_decoder"]
    for engine in opened.engines.values():
        with pytest.raises(UsageError, match="closed"):
            engine({})
    pipeline.close()
    with pytest.raises(UsageError, match="closed; open it again"):
        pipeline("a red apple")


def test_the_builtin_model_is_the_default(bundle_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "BUILTIN", bundle_path)
    with Pipeline.load() as pipeline:
        assert pipeline.bundle.path == bundle_path


def test_a_run_is_cancelled_from_another_thread(pipeline: Pipeline) -> None:
    run = pipeline.steps("a red apple", seed=0, num_inference_steps=6)
    steps = iter(run)
    next(steps)
    other = threading.Thread(target=run.cancel)
    other.start()
    other.join()
    with pytest.raises(RunCancelled, match="cancelled after 1 of 6 steps"):
        next(steps)
    with pytest.raises(RunCancelled, match="cancelled after 0 of 6 steps"):
        next(iter(run))


def test_engines_that_the_caller_opened(bundle_path: Path, opened: Opened) -> None:
    with Pipeline.load(bundle_path) as own:
        expected = pixels(own("a red apple", seed=0))
        engines = {name: own.bundle.engine(name) for name in ("text_encoder", "unet", "vae_decoder")}
        opened.names.clear()
        pipelines = [Pipeline.load(bundle_path, engines=engines) for _ in range(3)]
        assert opened.names == []
        with ThreadPoolExecutor() as pool:
            for images in pool.map(lambda pipeline: pipeline("a red apple", seed=0), pipelines):
                np.testing.assert_array_equal(pixels(images), expected)
        for pipeline in pipelines:
            pipeline.close()
        np.testing.assert_array_equal(pixels(own("a red apple", seed=0)), expected)
        with pytest.raises(UnknownName, match="unknown graph 'u-net'; known: text_encoder, unet, "):
            Pipeline.load(bundle_path, engines={"u-net": engines["unet"]})


TURBO = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("config", "scheduler", "few"),
    [
        (TURBO, None, True),
        (TURBO | {"_class_name": "EulerAncestralDiscreteScheduler"}, None, True),
        (TURBO, "ddim", True),
        (TURBO | {"prediction_type": "v_prediction"}, None, False),
        (TURBO | {"rescale_betas_zero_snr": True}, None, False),
        (TURBO | {"timestep_spacing": "leading"}, None, False),
        (TURBO | {"_class_name": "DDIMScheduler"}, None, False),
        ({"_class_name": "LCMScheduler"}, None, True),
        ({"_class_name": "LCMScheduler"}, "euler", True),
        ({"_class_name": "DDIMScheduler"}, "tcd", True),
    ],
)
def test_defaults_of_models_for_a_few_steps(
    pipeline: Pipeline, config: dict[str, Any], scheduler: str | None, few: bool
) -> None:
    pipeline.scheduler_config = config
    run = pipeline.steps("a red apple", scheduler=scheduler)
    assert (run.num_inference_steps, run.guidance_scale) == ((4, 1.0) if few else (20, 7.5))
    told = pipeline.steps("a red apple", scheduler=scheduler, num_inference_steps=3, guidance_scale=2.0)
    assert (told.num_inference_steps, told.guidance_scale) == (3, 2.0)


def test_a_model_distilled_with_guidance_has_that_of_lcm(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any family."""
    pipeline.scheduler_config = {"_class_name": "LCMScheduler"}
    monkeypatch.setattr(Manifest, "takes_guidance_scale", True)
    run = pipeline.steps("a red apple")
    assert (run.num_inference_steps, run.guidance_scale) == (4, 8.5)


def test_low_memory_holds_the_networks_of_one_stage_at_a_time(bundle_path: Path, opened: Opened) -> None:
    usual = Pipeline.load(bundle_path)("a red apple", seed=0)
    with Pipeline.load(bundle_path, low_memory=True) as pipeline:
        opened.names.clear()
        opened.engines.clear()
        run = pipeline.steps("a red apple", seed=0)
        assert opened.names == []
        latents = [(step.latents, alive(opened)) for step in run]
        assert {name for _, names in latents for name in names} == {"unet"}
        assert np.array_equal(np.asarray(run.images(latents[-1][0])[0].image), np.asarray(usual[0].image))
        assert opened.names == ["text_encoder", "unet", "vae_decoder"]
        assert alive(opened) == set()


def test_low_memory_keeps_what_another_run_still_needs(bundle_path: Path, opened: Opened) -> None:
    with Pipeline.load(bundle_path, low_memory=True) as pipeline:
        first, second = (iter(pipeline.steps("a red apple", seed=0)) for _ in range(2))
        next(first)
        next(second)
        del second
        next(first)
        assert alive(opened) == {"unet"}
        assert opened.names.count("unet") == 1
        del first
        assert alive(opened) == set()


def test_low_memory_draws_one_at_a_time(bundle_path: Path, opened: Opened) -> None:
    with Pipeline.load(bundle_path, low_memory=True) as pipeline:
        pipeline("a red apple", seed=0, num_images=2, batch_size="auto", num_inference_steps=1)
        assert [feeds["sample"].shape[0] for name, feeds in opened.calls if name == "unet"] == [2, 2]


def alive(opened: Opened) -> set[str]:
    """The engines that were not closed."""
    return {name for name, engine in opened.engines.items() if engine._run is not None}
