"""What must hold for every sampler that draws no noise, with no reference to compare with."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.arrays import F32
from edgediffusion.runtime.schedulers import SAMPLERS, SCHEDULERS, Scheduler, make_scheduler

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
NAMES = ("ddim", "dpmpp_2m", "euler")
ALL = tuple(sampler.name for sampler in SAMPLERS if not sampler.draws_noise)
CALLS = {"pndm": lambda n: n + 9, "plms": lambda n: n + (n > 1)}
CALLS |= dict.fromkeys(("dpm2", "flow_heun", "heun"), lambda n: 2 * n - 1)
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
    assert not any(scheduler.draws_noise(i) for i in range(steps))


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


@pytest.mark.parametrize("steps", [4, 7, 30])
@pytest.mark.parametrize("name", ALL)
def test_a_run_cut_and_resumed_is_the_whole_run(name: str, steps: int) -> None:
    whole = run(SCHEDULERS[name](CONFIG, steps), normal(1), normal(2))
    for cut in range(1, len(whole)):
        latents, history = whole[cut - 1]
        rest = run(SCHEDULERS[name](CONFIG, steps), latents, normal(2), start=cut, history=history)
        np.testing.assert_array_equal(rest[-1][0], whole[-1][0])


def test_a_start_in_the_middle_without_history_is_of_first_order() -> None:
    second, first = (SCHEDULERS["dpmpp_2m"](CONFIG | {"solver_order": order}, 7) for order in (2, 1))
    latents, (x0,) = second.step(normal(1), 3, normal(2), (), None)
    np.testing.assert_array_equal(latents, first.step(normal(1), 3, normal(2), (), None)[0])
    assert (latents != second.step(normal(1), 3, normal(2), (x0 + 1,), None)[0]).any()


@pytest.mark.parametrize("name", ALL)
def test_no_state_leaks_between_runs(name: str) -> None:
    scheduler = SCHEDULERS[name](CONFIG, 7)
    first = run(scheduler, normal(1), normal(2))
    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(run, scheduler, normal(1 + 2 * (k % 2)), normal(2)) for k in range(6)]
    for again in (runs[0].result(), runs[2].result(), runs[4].result()):
        for (a, _), (b, _) in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="read-only"):
        scheduler.timesteps[0] = 1


@pytest.mark.parametrize("name", ALL)
def test_a_step_leaves_its_arguments_alone(name: str) -> None:
    scheduler = SCHEDULERS[name](CONFIG | {"clip_sample": True}, 7)
    _, history = run(scheduler, normal(4), normal(5))[2]
    arrays = (normal(1), normal(2), *history)
    kept = [array.copy() for array in arrays]
    result, _ = scheduler.step(arrays[1], 3, arrays[0], history, None)
    for array, copy in zip(arrays, kept, strict=True):
        assert not np.shares_memory(result, array)
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("steps", [4, 5, 10, 50])
@pytest.mark.parametrize("name", ALL)
def test_calls(name: str, steps: int) -> None:
    """As many calls of the UNet as the table of samplers says, but for the last step of two, and PNDM's start."""
    scheduler = SCHEDULERS[name](CONFIG, steps)
    calls = CALLS.get(name, lambda n: n)(steps)
    assert scheduler.timesteps.shape == (calls,)
    assert scheduler.timesteps.dtype == np.float32
    assert scheduler.sigmas.shape == (calls + 1,)
    if name != "pndm":  # Runge-Kutta goes forth and back
        assert (np.diff(scheduler.sigmas) <= 0).all()
        assert np.sum(np.diff(scheduler.sigmas) == 0) <= calls - steps + (name in ("deis", "plms"))
    assert scheduler.sigmas[-1] < 0.05


def perfect(name: str, x0: F32, noise: F32) -> F32:
    """What a perfect network answers."""
    return noise - x0 if name.startswith("flow") else noise


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("name", sorted(set(ALL) - {"pndm", "ipndm", "edm_euler", "edm_dpmpp_2m", "deis"}))
def test_perfect_noise_gives_back_x0(name: str, steps: int) -> None:
    scheduler = SCHEDULERS[name](CONFIG | {"set_alpha_to_one": True}, steps)
    x0, noise = normal(0), normal(1)
    # As in diffusers PLMS makes a first step twice in the middle, and LMS has weights for a history it has not.
    for start in (0,) if name in ("lms", "plms") else (0, len(scheduler.timesteps) // 4 * 2):
        latents = scheduler.add_noise(x0, noise, start)
        history: tuple[F32, ...] = ()
        for i in range(start, len(scheduler.timesteps)):
            latents, history = scheduler.step(perfect(name, x0, noise), i, latents, history, None)
        assert np.abs(latents - x0).max() < 1e-4


def test_the_middle_of_a_step_needs_its_history() -> None:
    with pytest.raises(UsageError, match="call 3 goes on from the call before it and needs its history; start at an e"):
        SCHEDULERS["heun"](CONFIG, 5).step(normal(0), 3, normal(1), (), None)


ORDERS: list[tuple[str, dict[str, Any], int]] = [
    ("dpmpp_2m", {}, 2),
    ("dpmpp_2m", {"solver_type": "heun"}, 2),
    ("dpmpp_2m", {"solver_order": 1}, 1),
    ("dpmpp_2m", {"algorithm_type": "dpmsolver"}, 2),
    ("dpmpp_2s", {}, 2),
    ("dpmpp_2s", {"solver_order": 3, "solver_type": "heun"}, 3),
    ("dpmpp_2s", {"solver_order": 3, "algorithm_type": "dpmsolver"}, 3),
    ("unipc", {"solver_order": 1}, 2),  # the corrector raises the order by one
    ("unipc", {"solver_order": 2, "disable_corrector": range(1000)}, 2),
    ("deis", {}, 2),
    ("euler", {}, 1),
    ("heun", {}, 2),
    ("dpm2", {}, 2),
]


@pytest.mark.parametrize(("name", "options", "order"), ORDERS, ids=str)
def test_order_of_convergence(name: str, options: dict[str, Any], order: int) -> None:
    """On the probability flow of x0 ~ N(0, 0.5^2), whose end is known: half the step, half the error or a quarter."""
    config = CONFIG | {"final_sigmas_type": "sigma_min", "lower_order_final": False} | options

    def error(steps: int) -> float:
        sigmas = np.geomspace(14, 0.05, steps)
        scheduler = make_scheduler(name, config, steps, sigmas=sigmas.tolist())
        steps_taken = 2 * (steps - 1) if name in ("heun", "dpm2") else steps - 1
        preserving = scheduler.init_noise_sigma == 1
        scales = np.hypot(scheduler.sigmas, 1) if preserving else np.ones(len(scheduler.sigmas))
        latents: Any = np.ones((1, 1, 1, 1)) / scales[0]
        history: tuple[Any, ...] = ()
        for i in range(steps_taken):
            sigma = scheduler.sigmas[i]
            answer = latents * scales[i] * sigma / (sigma**2 + 0.25)
            latents, history = scheduler.step(answer, i, latents, history, None)
        end = np.hypot(sigmas[-1], 0.5) / np.hypot(sigmas[0], 0.5)
        return float(abs(latents.item() * scales[steps_taken] - end))

    # 120 and 240 steps are whole blocks of singlestep, of order 2 and 3 both.
    assert error(121) / error(241) == pytest.approx(2**order, rel=0.15)
