"""What must hold for every sampler, with no reference to compare with; of noise, see test_stochastic.py."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.arrays import F32
from edgediffusion.runtime.schedulers import SAMPLERS, SCHEDULERS, Scheduler, find_sampler, make_scheduler

CONFIG = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
NAMES = ("ddim", "dpmpp_2m", "euler")
ALL = tuple(sampler.name for sampler in SAMPLERS)
DETERMINISTIC = tuple(sampler.name for sampler in SAMPLERS if not sampler.draws_noise)
CALLS = {"pndm": lambda n: n + 9, "plms": lambda n: n + (n > 1)}
CALLS |= dict.fromkeys(("dpm2", "flow_heun", "heun"), lambda n: 2 * n - 1)
STEPS = (1, 2, 3, 7, 30, 33, 50, 1000)
SHAPE = (2, 4, 8, 8)
SPACINGS = ("leading", "linspace", "trailing")
REFUSED = ("dpmpp_2m", "leading", 1000)  # the stride for 1001 points is 0, see test_config.py
STOPS_EARLY = ("ddim", "trailing", 7)
LEAST = pytest.approx(0.02917, abs=1e-5)  # of the training
ENDS = dict.fromkeys(("deis", "plms", "pndm"), LEAST)


def normal(seed: int) -> F32:
    return np.random.default_rng(seed).standard_normal(SHAPE, np.float32)


def run(
    scheduler: Scheduler, latents: F32, output: F32, *, start: int = 0, history: tuple[F32, ...] = ()
) -> list[tuple[F32, tuple[F32, ...]]]:
    """States after each call, with a network that answers `output` pulled towards its input. Call i has noise i."""
    states = []
    for i in range(start, len(scheduler.timesteps)):
        answer = np.tanh(scheduler.scale_model_input(latents, i)) + output
        noise = normal(100 + i) if scheduler.draws_noise(i) else None
        latents, history = scheduler.step(answer, i, latents, history, noise)
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
    assert scheduler.sigmas[-1] == (LEAST if (name, spacing, steps) == STOPS_EARLY else 0)
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
    states = [(normal(1), ()), *run(scheduler, normal(1), normal(2))]
    for i, (latents, history) in enumerate(states[:-1]):
        arguments = (normal(2), latents, normal(3), *history)
        kept = [array.copy() for array in arguments]
        result, _ = scheduler.step(arguments[0], i, latents, history, arguments[2])
        for array, copy in zip(arguments, kept, strict=True):
            assert not np.shares_memory(result, array)
            np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("name", sorted(set(ALL) - set(DETERMINISTIC)))
def test_without_noise_there_is_no_step(name: str) -> None:
    scheduler = SCHEDULERS[name](CONFIG | {"steps_offset": 1, "timestep_spacing": "leading"}, 7)
    i = next(i for i in range(7) if scheduler.draws_noise(i))
    states = [(normal(1), ()), *run(scheduler, normal(1), normal(2))]
    message = rf"call {i} draws noise; wanted standard normal noise of shape \(2, 4, 8, 8\)"
    with pytest.raises(UsageError, match=message):
        scheduler.step(normal(2), i, *states[i], None)


@pytest.mark.parametrize("steps", [4, 5, 10, 50])
@pytest.mark.parametrize("name", DETERMINISTIC)
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
    assert scheduler.sigmas[-1] == ENDS.get(name, 0)


def _of_edm(x0: Any, noise: Any, alpha: float, sigma: float) -> Any:
    # arXiv:2206.00364 table 1: x0 = c_skip * latents + c_out * answer, for data of deviation 0.5
    scale = np.hypot(sigma, 0.5)
    return (x0 - (0.5 / scale) ** 2 * (x0 + sigma * noise)) * scale / (0.5 * sigma)


# What a perfect network answers of latents alpha * x0 + sigma * noise; but for these it answers the noise.
ANSWERS: dict[str, Callable[[Any, Any, float, float], Any]] = {
    "edm_dpmpp_2m": _of_edm,
    "edm_euler": _of_edm,
    "flow_euler": lambda x0, noise, alpha, sigma: noise - x0,
    "flow_heun": lambda x0, noise, alpha, sigma: noise - x0,
    "ipndm": lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
}


def perfect(name: str, scheduler: Scheduler, i: int, x0: Any, noise: Any) -> Any:
    alpha, sigma = levels_of(scheduler, i)
    return ANSWERS[name](x0, noise, alpha, sigma) if name in ANSWERS else noise


def levels_of(scheduler: Scheduler, i: int) -> tuple[float, float]:
    """How much signal and how much noise the latents of call i hold."""
    zero, one = np.zeros(1), np.ones(1)
    alpha, sigma = scheduler.add_noise(one, zero, i), scheduler.add_noise(zero, one, i)  # type: ignore[arg-type]
    return alpha.item(), sigma.item()


# As in diffusers PLMS makes a first step twice in the middle, LMS has weights for a history it has not, and the first
# call of iPNDM, of noise alone, is told nothing of x0.
STARTS = {"lms": (0,), "plms": (0,), "pndm": (0,), "ipndm": (1,)}
FEWEST = {"pndm": 4, "ipndm": 2}


@pytest.mark.parametrize(
    ("name", "steps"), [case for case in product(DETERMINISTIC, (1, 2, 3, 7, 30)) if case[1] >= FEWEST.get(case[0], 1)]
)
def test_perfect_noise_gives_back_x0(name: str, steps: int) -> None:
    scheduler = SCHEDULERS[name](CONFIG | {"set_alpha_to_one": True}, steps)
    x0, noise = normal(0), normal(1)
    for start in STARTS.get(name, (0, len(scheduler.timesteps) // 4 * 2)):
        latents = scheduler.add_noise(x0, noise, start)
        history: tuple[F32, ...] = ()
        for i in range(start, len(scheduler.timesteps)):
            latents, history = scheduler.step(perfect(name, scheduler, i, x0, noise), i, latents, history, None)
        left = scheduler.sigmas[-1]
        assert np.abs(latents * np.hypot(left, 1) - (x0 + left * noise)).max() < 1e-4


OF_NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
X0_CASES = [
    *((name, {}) for name in ALL),
    *((name, {"prediction_type": "v_prediction"}) for name in ALL if name not in ANSWERS),
    *(("dpmpp_2m", OF_NOISE | {"prediction_type": kind}) for kind in ("epsilon", "v_prediction")),
    ("ddpm", {"variance_type": "learned_range"}),
]


@pytest.mark.parametrize(("name", "settings"), X0_CASES, ids=lambda case: case if isinstance(case, str) else str(case))
def test_x0_of_a_perfect_prediction(name: str, settings: dict[str, str]) -> None:
    scheduler = SCHEDULERS[name](CONFIG | settings, 7)
    x0, noise = normal(0), normal(1)
    for i in range(STARTS["ipndm"][0], len(scheduler.timesteps)):
        alpha, sigma = levels_of(scheduler, i)
        answer = perfect(name, scheduler, i, x0, noise)
        if settings.get("prediction_type") == "v_prediction":
            answer = (alpha * noise - sigma * x0) / np.hypot(alpha, sigma)
        if "variance_type" in settings:
            answer = np.concatenate([answer, normal(2)], axis=1)
        # float32 latents of noise fifteen times the signal
        assert np.abs(scheduler.x0(answer, i, scheduler.add_noise(x0, noise, i)) - x0).max() < 1e-4


def test_the_middle_of_a_step_needs_its_history() -> None:
    with pytest.raises(UsageError, match="call 3 goes on from the call before it and needs its history; start at an e"):
        SCHEDULERS["heun"](CONFIG, 5).step(normal(0), 3, normal(1), (), None)


def error(name: str, scheduler: Scheduler, calls: int) -> float:
    """After so many calls on the probability flow of x0 ~ N(0, 0.5^2), whose latents keep to their deviation."""

    def deviation(alpha: float, sigma: float) -> float:
        return float(np.hypot(0.5 * alpha, sigma))

    latents: Any = np.full((1, 1, 1, 1), deviation(*levels_of(scheduler, 0)))
    history: tuple[Any, ...] = ()
    for i in range(calls):
        alpha, sigma = levels_of(scheduler, i)
        noise, x0 = (latents * weight / deviation(alpha, sigma) ** 2 for weight in (sigma, 0.25 * alpha))
        latents, history = scheduler.step(perfect(name, scheduler, i, x0, noise), i, latents, history, None)
    end = levels_of(scheduler, calls) if calls < len(scheduler.timesteps) else (1.0, 0.0)
    return abs(float(latents.item()) - deviation(*end))


ORDERS: list[tuple[str, dict[str, Any], int]] = [
    ("dpmpp_2m", {}, 2),
    ("dpmpp_2m", {"solver_type": "heun"}, 2),
    ("dpmpp_2m", {"solver_order": 1}, 1),
    ("dpmpp_2m", {"solver_order": 3}, 2),  # its first step is of the first order
    ("dpmpp_2m", {"algorithm_type": "dpmsolver"}, 2),
    ("dpmpp_2s", {}, 2),
    ("dpmpp_2s", {"solver_order": 3, "solver_type": "heun"}, 3),
    ("dpmpp_2s", {"solver_order": 3, "algorithm_type": "dpmsolver"}, 3),
    ("unipc", {"solver_order": 1}, 2),  # the corrector raises the order by one
    ("unipc", {"solver_order": 2, "disable_corrector": list(range(1000))}, 2),
    ("unipc", {"solver_order": 3}, 4),
    ("deis", {}, 2),
    ("euler", {}, 1),
    ("heun", {}, 2),
    ("dpm2", {}, 2),
    ("edm_euler", {}, 1),
    ("edm_dpmpp_2m", {}, 2),
    ("flow_euler", {}, 1),
    ("flow_heun", {}, 2),
]


@pytest.mark.parametrize(("name", "options", "order"), ORDERS, ids=str)
def test_order_of_convergence(name: str, options: dict[str, Any], order: int) -> None:
    """Half the step, half the error, or a quarter, or less."""
    config = CONFIG | {"final_sigmas_type": "sigma_min", "lower_order_final": False} | options

    def error_of(steps: int) -> float:
        sigmas = np.linspace(1, 0.05, steps) if name.startswith("flow") else np.geomspace(14, 0.05, steps)
        scheduler = make_scheduler(name, config, steps, sigmas=sigmas.tolist())
        return error(name, scheduler, (steps - 1) * find_sampler(name).calls_per_step)

    # 120 and 240 steps are whole blocks of singlestep, of order 2 and 3 both.
    assert error_of(121) / error_of(241) == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize(("name", "least"), [("ddim", 1.6), ("plms", 2.5), ("pndm", 2.5), ("ipndm", 3.0), ("lms", 8.0)])
def test_error_falls_as_the_steps_grow(name: str, least: float) -> None:
    """Where levels are the training's and cannot be chosen, or the first steps are of lower orders: by how much."""

    def error_of(steps: int) -> float:
        scheduler = SCHEDULERS[name](CONFIG, steps)
        return error(name, scheduler, len(scheduler.timesteps) - 1)

    assert error_of(50) / error_of(100) > least


def test_every_deterministic_sampler_has_its_order_of_convergence_tested() -> None:
    fixed = {"ddim", "plms", "pndm", "ipndm", "lms"}
    assert {name for name, _, _ in ORDERS} | fixed | {"dpmpp_2m_karras", "dpmpp_3m"} == set(DETERMINISTIC)
