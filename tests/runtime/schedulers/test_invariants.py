"""What must hold for every sampler, with no reference to compare with."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from edgediffusion.runtime.arrays import F32
from edgediffusion.runtime.schedulers import SCHEDULERS, Scheduler, short_name

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
NAMES = sorted({short_name(name) for name in SCHEDULERS})
STEPS = (1, 2, 3, 7, 30, 33, 50, 1000)
SHAPE = (2, 4, 8, 8)
SPACINGS = ("leading", "linspace", "trailing")
REFUSED = ("dpmpp_2m", "leading", 1000)  # the stride for 1001 points is 0, see test_config.py
STOPS_EARLY = ("ddim", "trailing", 7)


def normal(seed: int) -> F32:
    return np.random.default_rng(seed).standard_normal(SHAPE, np.float32)


def run(
    scheduler: Scheduler, latents: F32, output: F32, *, start: int = 0, history: tuple[F32, ...] = ()
) -> list[tuple[F32, tuple[F32, ...]]]:
    """States after each step, with a network that always answers `output` pulled towards its input."""
    states = []
    for i in range(start, len(scheduler.timesteps)):
        answer = np.tanh(scheduler.scale_model_input(latents, i)) + output
        latents, history = scheduler.step(answer, i, latents, history, None)
        states.append((latents, history))
    return states


@pytest.mark.parametrize(("name", "spacing", "steps"), sorted(set(product(NAMES, SPACINGS, STEPS)) - {REFUSED}))
def test_levels_fall_to_zero(name: str, spacing: str, steps: int) -> None:
    scheduler = SCHEDULERS[name](CONFIG | {"timestep_spacing": spacing}, steps)
    assert scheduler.timesteps.shape == (steps,)
    assert scheduler.timesteps.dtype == np.float32
    assert scheduler.sigmas.shape == (steps + 1,)
    repeated = int(name == "dpmpp_2m" and spacing == "linspace" and steps == 1000)  # 1001 points on 1000 timesteps
    assert np.sum(np.diff(scheduler.timesteps) >= 0) <= repeated
    assert np.sum(np.diff(scheduler.sigmas) >= 0) <= repeated
    # diffusers steps down by 1000 // 7 = 142 from the last timestep, round(1000 / 7) - 1, and so ends at timestep 0.
    assert scheduler.sigmas[-1] == (pytest.approx(0.02917, abs=1e-5) if (name, spacing, steps) == STOPS_EARLY else 0)
    assert not scheduler.draws_noise


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("karras", [False, True])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_prediction_gives_back_x0(name: str, steps: int, karras: bool, prediction_type: str) -> None:
    config = CONFIG | {"use_karras_sigmas": karras, "prediction_type": prediction_type}
    scheduler = SCHEDULERS[name](config, steps)
    x0, latents = normal(0), normal(1) * np.float32(scheduler.init_noise_sigma)
    history: tuple[F32, ...] = ()
    for i, sigma in enumerate(scheduler.sigmas[:-1]):
        alpha = 1 / np.hypot(sigma, 1)
        noise = (scheduler.scale_model_input(latents, i) / alpha - x0) / sigma
        answer = {"epsilon": noise, "v_prediction": alpha * noise - sigma * alpha * x0, "sample": x0}[prediction_type]
        latents, history = scheduler.step(answer.astype(np.float32), i, latents, history, None)
    assert latents.dtype == np.float32
    # Rounding of the latents at sigma = 14.6 is what remains of it after a single step.
    assert np.abs(latents - x0).max() < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_cut_and_resumed_is_the_whole_run(name: str, steps: int) -> None:
    whole = run(SCHEDULERS[name](CONFIG, steps), normal(1), normal(2))
    for cut in range(1, steps):
        latents, history = whole[cut - 1]
        rest = run(SCHEDULERS[name](CONFIG, steps), latents, normal(2), start=cut, history=history)
        np.testing.assert_array_equal(rest[-1][0], whole[-1][0])


def test_a_start_in_the_middle_without_history_is_of_first_order() -> None:
    second, first = (SCHEDULERS["dpmpp_2m"](CONFIG | {"solver_order": order}, 7) for order in (2, 1))
    latents, (x0,) = second.step(normal(1), 3, normal(2), (), None)
    np.testing.assert_array_equal(latents, first.step(normal(1), 3, normal(2), (), None)[0])
    assert (latents != second.step(normal(1), 3, normal(2), (x0 + 1,), None)[0]).any()


@pytest.mark.parametrize("name", NAMES)
def test_no_state_leaks_between_runs(name: str) -> None:
    scheduler = SCHEDULERS[name](CONFIG, 7)
    first = run(scheduler, normal(1), normal(2))
    run(scheduler, normal(3), normal(4))
    again = run(scheduler, normal(1), normal(2))
    for (a, _), (b, _) in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="read-only"):
        scheduler.timesteps[0] = 1


@pytest.mark.parametrize("name", NAMES)
def test_a_step_leaves_its_arguments_alone(name: str) -> None:
    scheduler = SCHEDULERS[name](CONFIG | {"clip_sample": True}, 7)
    latents, output, before = normal(1), normal(2), normal(3)
    kept = [array.copy() for array in (latents, output, before)]
    result, _ = scheduler.step(output, 3, latents, (before,), None)
    for array, copy in zip((latents, output, before), kept, strict=True):
        assert not np.shares_memory(result, array)
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("options", "order"), [({}, 2), ({"solver_type": "heun"}, 2), ({"solver_order": 1}, 1)], ids=str
)
def test_order_of_convergence(options: dict[str, Any], order: int) -> None:
    """On the probability flow of x0 ~ N(0, 0.5^2), whose end is known: half the step, half the error or a quarter."""
    config = CONFIG | {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "lower_order_final": False}

    def error(steps: int) -> float:
        scheduler = SCHEDULERS["dpmpp_2m"](config | options, steps)
        sigmas = scheduler.sigmas
        latents: Any = np.ones((1, 1, 1, 1)) / np.hypot(sigmas[0], 1)
        history: tuple[Any, ...] = ()
        for i, sigma in enumerate(sigmas[:-1]):
            answer = latents * np.hypot(sigma, 1) * sigma / (sigma**2 + 0.25)
            latents, history = scheduler.step(answer, i, latents, history, None)
        end = np.hypot(sigmas[-1], 0.5) / np.hypot(sigmas[0], 0.5)
        return float(abs(latents.item() * np.hypot(sigmas[-1], 1) - end))

    assert error(100) / error(200) == pytest.approx(2**order, rel=0.1)
