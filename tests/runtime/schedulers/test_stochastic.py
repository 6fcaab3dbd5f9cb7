"""What must hold for every sampler that draws noise, with no reference to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.arrays import F32
from edgediffusion.runtime.schedulers import SAMPLERS, SCHEDULERS

CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "timestep_spacing": "trailing",
}
NAMES = ("ddpm", "dpm2_a", "dpmpp_2m_sde", "dpmpp_sde", "euler_a", "lcm", "sa_solver", "tcd")
TWO_CALLS = ("dpm2_a", "dpmpp_sde")
STEPS = (1, 2, 3, 7, 30, 50)
SHAPE = (2, 4, 8, 8)
LEAST = 0.02917  # of the training
ENDS = {"sa_solver": LEAST, "tcd": LEAST}


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_they_are_all_that_draw_noise() -> None:
    assert {sampler.name for sampler in SAMPLERS if sampler.draws_noise} == set(NAMES)
    for sampler in SAMPLERS:
        scheduler = sampler.make({}, 5)
        assert any(scheduler.draws_noise(i) for i in range(len(scheduler.timesteps))) == sampler.draws_noise


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_levels_fall_to_the_end(name: str, steps: int) -> None:
    scheduler = SCHEDULERS[name](CONFIG, steps)
    calls = 2 * steps - 1 if name in TWO_CALLS else steps
    assert scheduler.timesteps.shape == (calls,)
    assert scheduler.timesteps.dtype == np.float32
    assert scheduler.sigmas.shape == (calls + 1,)
    if name != "dpm2_a":  # its middle lies between a level and the one below the next, to which it steps down
        assert (np.diff(scheduler.sigmas) < 0).all()
    assert scheduler.sigmas[-1] == pytest.approx(ENDS.get(name, 0), abs=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize("name", [*NAMES, "ddim"])
def test_a_perfect_prediction_leaves_as_much_noise_as_the_level_says(
    name: str, steps: int, prediction_type: str
) -> None:
    """Latents stay alpha * x0 + sigma * noise with noise of variance 1: what is stepped down is what is drawn."""
    settings = {"eta": 1.0} if name == "ddim" else {}
    scheduler = SCHEDULERS[name](CONFIG | {"prediction_type": prediction_type} | settings, steps)
    shape = (1, 4, 64, 64)
    x0, latents = normal(0, shape), normal(1, shape) * np.float32(scheduler.init_noise_sigma)
    history: tuple[F32, ...] = ()
    zero, one = np.zeros(1, np.float64), np.ones(1, np.float64)
    for i in range(len(scheduler.timesteps)):
        alpha, sigma = (float(scheduler.add_noise(*pair, i)[0]) for pair in ((one, zero), (zero, one)))  # type: ignore[arg-type]
        if i > 0:
            # Five standard errors of the deviation of 16 384 values
            assert ((latents - alpha * x0) / sigma).std() == pytest.approx(1, abs=5 / np.sqrt(2 * 16384))
        scale = float(np.hypot(alpha, sigma))
        noise = (latents - alpha * x0) / sigma
        answers: dict[str, Any] = {"epsilon": noise, "v_prediction": (alpha * noise - sigma * x0) / scale, "sample": x0}
        drawn = normal(100 + i, shape) if scheduler.draws_noise(i) else None
        latents, history = scheduler.step(answers[prediction_type].astype(np.float32), i, latents, history, drawn)
    assert latents.dtype == np.float32
    left = latents * np.hypot(scheduler.sigmas[-1], 1) - x0
    assert left.std() == pytest.approx(scheduler.sigmas[-1], rel=5 / np.sqrt(2 * 16384), abs=2e-5)


@pytest.mark.parametrize("name", TWO_CALLS)
def test_a_start_between_two_calls_is_refused(name: str) -> None:
    scheduler = SCHEDULERS[name](CONFIG, 7)
    with pytest.raises(UsageError, match="call 3 goes on from the call before it and needs its history"):
        scheduler.step(normal(1), 3, normal(2), (), normal(3))


@pytest.mark.parametrize(
    ("name", "options", "steps", "message"),
    [
        ("tcd", {"eta": 1.5}, 4, "eta 1.5; wanted 0 to 1"),
        ("tcd", {}, 51, "num_inference_steps 51; wanted 1 to original_inference_steps, 50, and that not above"),
        ("lcm", {}, 0, "num_inference_steps 0; wanted 1 to original_inference_steps, 50"),
        (
            "lcm",
            {"strength": 0.1},
            6,
            r"num_inference_steps 6; wanted 1 to original_inference_steps times strength 0\.1, 5",
        ),
        ("lcm", {"strength": 0.0}, 4, r"strength 0\.0; wanted a number above 0, 1 at most"),
        ("tcd", {"strength": 1.5}, 4, r"strength 1\.5; wanted a number above 0, 1 at most"),
        ("lcm", {"original_inference_steps": 2000}, 4, "that not above num_train_timesteps, 1000"),
        (
            "ddpm",
            {"variance_type": "fixed_large_log"},
            4,
            "variance_type 'fixed_large_log' is not supported here; known: 'fixed_small'",
        ),
        ("ddpm", {"steps_offset": 1, "timestep_spacing": "leading"}, 1000, "starts at timestep 1000, beyond the 1000"),
        (
            "sa_solver",
            {"algorithm_type": "sde-dpmsolver++"},
            4,
            "algorithm_type 'sde-dpmsolver\\+\\+'; known: 'data_pre",
        ),
        ("sa_solver", {"predictor_order": 5}, 4, "predictor_order 5 is not supported here; known: 1, 2, 3, 4"),
    ],
)
def test_what_cannot_be_used(name: str, options: dict[str, Any], steps: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SCHEDULERS[name](CONFIG | options, steps)


def test_tcd_without_eta_draws_no_noise() -> None:
    scheduler = SCHEDULERS["tcd"](CONFIG | {"eta": 0}, 4)
    assert not any(scheduler.draws_noise(i) for i in range(4))


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m", "dpmpp_2s", "sa_solver"])
def test_a_learned_variance_that_is_missing(name: str) -> None:
    scheduler = SCHEDULERS[name](CONFIG | {"variance_type": "learned_range"}, 4)
    with pytest.raises(
        UsageError, match=r"model_output of 4 channels; wanted 8, .* remove variance_type from the sched"
    ):
        scheduler.step(normal(1), 0, normal(2), (), normal(3))


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2s", "sa_solver"])
def test_a_solver_leaves_a_learned_variance_aside(name: str) -> None:
    plain, learned = (SCHEDULERS[name](CONFIG | {"variance_type": kind}, 4) for kind in (None, "learned"))
    output, variance, latents, noise = (normal(seed) for seed in range(4))
    expected, _ = plain.step(output, 0, latents, (), noise)
    np.testing.assert_array_equal(
        learned.step(np.concatenate([output, variance], axis=1), 0, latents, (), noise)[0], expected
    )
