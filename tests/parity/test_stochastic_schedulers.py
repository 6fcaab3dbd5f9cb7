"""Samplers that draw noise against diffusers, step by step, in float64 and with the same noise on both sides."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers import (
    scheduling_ddim,
    scheduling_ddpm,
    scheduling_dpmsolver_multistep,
    scheduling_euler_ancestral_discrete,
    scheduling_k_dpm_2_ancestral_discrete,
    scheduling_lcm,
    scheduling_sasolver,
    scheduling_tcd,
)

from edgediffusion.bench.parity.cases import FLOW_PREDICTION, LEARNED, SD15, SPACINGS, STEPS
from edgediffusion.bench.parity.reference import Double, Latents, answer, network
from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.schedulers import SCHEDULERS

# Its Brownian tree is replaced below, but in one test, so the module will do without torchsde.
HAS_TORCHSDE = find_spec("torchsde") is not None
if not HAS_TORCHSDE:
    sys.modules["torchsde"] = ModuleType("torchsde")
from diffusers.schedulers import scheduling_dpmsolver_sde  # noqa: E402

MODULES = {
    "DDIMScheduler": scheduling_ddim,
    "DDPMScheduler": scheduling_ddpm,
    "EulerAncestralDiscreteScheduler": scheduling_euler_ancestral_discrete,
    "KDPM2AncestralDiscreteScheduler": scheduling_k_dpm_2_ancestral_discrete,
    "DPMSolverSDEScheduler": scheduling_dpmsolver_sde,
    "LCMScheduler": scheduling_lcm,
    "TCDScheduler": scheduling_tcd,
    "SASolverScheduler": scheduling_sasolver,
    "DPMSolverMultistepScheduler": scheduling_dpmsolver_multistep,
}
SETTINGS: dict[str, dict[str, Any]] = {name: {} for name in MODULES}
SETTINGS["DDIMScheduler"] = {"eta": 0.7}
SETTINGS["DPMSolverMultistepScheduler"] = {"algorithm_type": "sde-dpmsolver++"}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Both compute in float64, but for LCM's scalings at the boundary, which diffusers has in float32 from whole timesteps.
RTOL = dict.fromkeys(MODULES, 1e-10) | {"LCMScheduler": 1e-6}
SHAPE = (2, 3, 4, 4)  # diffusers' solvers cut a learned variance off behind three channels


class Stream:
    """Noise for both sides; diffusers takes it in place of its `randn_tensor` and of its Brownian tree."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(1)
        self._brownian: list[tuple[float, float, torch.Tensor]] = []

    def normal(self) -> Latents:
        return self._random.standard_normal(SHAPE)

    def randn_tensor(self, shape: Any, **_: Any) -> torch.Tensor:
        assert tuple(shape) == SHAPE
        return torch.from_numpy(self.normal())

    def between(self, sigma: Any, next_sigma: Any) -> torch.Tensor:
        """Normalised increments of one Brownian motion, asked for as DPMSolverSDEScheduler does: half, then whole."""
        start, end = float(sigma), float(next_sigma)
        if not self._brownian or self._brownian[-1][0] != start:
            self._brownian.append((start, end, torch.from_numpy(self.normal())))
            return self._brownian[-1][2]
        _, middle, first = self._brownian[-1]
        second = torch.from_numpy(self.normal())
        whole = math.sqrt(start - middle) * first + math.sqrt(middle - end) * second
        return whole / math.sqrt(start - end)


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in MODULES.values():
        monkeypatch.setattr(module, "torch", Double(torch))
        monkeypatch.setattr(module, "np", Double(np))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def their_run(
    name: str, config: dict[str, Any], steps: int, start: Latents | None, strength: float
) -> Iterator[tuple[float, Latents]]:
    stream = Stream()
    scheduler: Any = getattr(MODULES[name], name).from_config(config)
    scheduler.set_timesteps(
        **({"timesteps": config["timesteps"]} if "timesteps" in config else {"num_inference_steps": steps})
    )
    with pytest.MonkeyPatch.context() as patch:
        module = MODULES[name]
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", stream.randn_tensor)
        else:
            patch.setattr(module, "BrownianTreeNoiseSampler", lambda *_: stream.between)
        # As the pipelines of diffusers do it for a strength
        skip = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skip)
        timesteps = scheduler.timesteps[skip:]
        noise = torch.from_numpy(stream.normal())
        if start is None:
            latents = noise * scheduler.init_noise_sigma
        else:
            latents = scheduler.add_noise(torch.from_numpy(start), noise, timesteps[:1])
        eta = {"eta": config["eta"]} if "eta" in config else {}
        for t in timesteps:
            sample = scheduler.scale_model_input(latents, t)
            output = torch.from_numpy(answer(config, sample.numpy(), float(t)))
            latents = scheduler.step(output, t, latents, return_dict=False, **eta)[0]
            yield float(t), latents.numpy()


def our_run(
    name: str, config: dict[str, Any], steps: int, start: Latents | None, first: int
) -> Iterator[tuple[float, Latents]]:
    stream = Stream()
    scheduler = SCHEDULERS[name](config, steps)
    noise = stream.normal()
    latents: Latents = noise * scheduler.init_noise_sigma if start is None else scheduler.add_noise(start, noise, first)
    history: tuple[Latents, ...] = ()
    for i in range(first, len(scheduler.timesteps)):
        t = float(scheduler.timesteps[i])
        output = answer(config, scheduler.scale_model_input(latents, i), t)
        fresh = stream.normal() if scheduler.draws_noise(i) else None
        latents, history = scheduler.step(output, i, latents, history, fresh)
        yield t, latents


def compare(name: str, config: dict[str, Any], steps: int, strength: float = 1.0) -> float:
    """The largest relative error of a step. Fails at the first that is too large."""
    start = None if strength == 1 else np.random.default_rng(2).standard_normal(SHAPE)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # diffusers' own divisions by zero and deprecations
        theirs = list(their_run(name, config, steps, start, strength))
    calls = len(SCHEDULERS[name](config, steps).timesteps)
    ours = list(our_run(name, config, steps, start, calls - len(theirs)))
    worst = 0.0
    for step, ((our_t, a), (their_t, b)) in enumerate(zip(ours, theirs, strict=True)):
        assert our_t == pytest.approx(their_t, abs=1e-4), f"{steps} steps, step {step}: {our_t}, diffusers' {their_t}"
        assert np.isfinite(b).all()
        error = float(np.abs(a - b).max() / np.abs(b).max())
        assert error <= RTOL[name], f"{steps} steps, step {step} (timestep {their_t}): relative error {error:.3g}"
        worst = max(worst, error)
    return worst


def lacks(name: str, prediction_type: str) -> bool:
    ancestral = ("EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler")
    return prediction_type == "sample" and name in ancestral


CASES = [case for case in product(MODULES, SPACINGS, PREDICTIONS) if not lacks(case[0], case[2])]


@pytest.mark.parametrize(("name", "spacing", "prediction_type"), CASES)
def test_spacing_and_prediction(name: str, spacing: str, prediction_type: str) -> None:
    config = SD15 | SETTINGS[name] | {"timestep_spacing": spacing, "prediction_type": prediction_type}
    for steps in STEPS:
        compare(name, config, steps)


@pytest.mark.parametrize("strength", [0.3, 0.55, 0.8])
@pytest.mark.parametrize("name", MODULES)
def test_strength(name: str, strength: float) -> None:
    for steps in (5, 10, 25, 50):
        compare(name, SD15 | SETTINGS[name], steps, strength)


SIGMAS: tuple[dict[str, Any], ...] = tuple({f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta"))
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "DDIMScheduler": (
        {"eta": 1.0},
        {"clip_sample": True, "clip_sample_range": 0.4},
        {"thresholding": True},
        {"set_alpha_to_one": True},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
    "DDPMScheduler": (
        *LEARNED,
        LEARNED[1] | {"clip_sample": True, "prediction_type": "v_prediction"},
        {"beta_schedule": "laplace"},
        {"beta_schedule": "sigmoid"},
        {"variance_type": "fixed_small_log"},
        {"variance_type": "fixed_large"},
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.4, "prediction_type": "v_prediction"},
        {"thresholding": True, "sample_max_value": 2.0},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
    "EulerAncestralDiscreteScheduler": (
        {"steps_offset": 0, "timestep_spacing": "leading"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"use_karras_sigmas": True},
    ),
    "KDPM2AncestralDiscreteScheduler": SIGMAS,
    "DPMSolverSDEScheduler": SIGMAS,
    "LCMScheduler": (
        {"original_inference_steps": 100},
        {"timestep_scaling": 1.0},
        {"clip_sample": True, "clip_sample_range": 0.4},
        {"thresholding": True},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ),
    "TCDScheduler": (
        {"original_inference_steps": 100},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"eta": 0.0},
        {"eta": 0.7},
        {"eta": 1.0},
    ),
    "SASolverScheduler": (
        *SIGMAS,
        {"predictor_order": 1, "corrector_order": 1},
        {"predictor_order": 3, "corrector_order": 4},
        {"predictor_order": 4, "corrector_order": 3},
        {"predictor_order": 1, "corrector_order": 3},
        {"predictor_order": 3, "corrector_order": 1},
        {"algorithm_type": "noise_prediction"},
        {"algorithm_type": "noise_prediction", "predictor_order": 3, "corrector_order": 3},
        {"lower_order_final": False, "predictor_order": 3, "corrector_order": 3},
        {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
        {"thresholding": True},
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
        FLOW_PREDICTION,
    ),
    "DPMSolverMultistepScheduler": (
        *({"solver_order": order, "solver_type": kind} for order in (1, 2, 3) for kind in ("midpoint", "heun")),
        *SIGMAS,
        {"use_lu_lambdas": True},
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
        {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        FLOW_PREDICTION,
        LEARNED[1],
    ),
}
BETAS: tuple[dict[str, Any], ...] = (
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist()},
)


@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in MODULES for options in OPTIONS[name] + BETAS], ids=str
)
def test_options(name: str, options: dict[str, Any]) -> None:
    if "use_beta_sigmas" in options:
        pytest.importorskip("scipy", reason="diffusers takes the beta distribution from it")
    for steps in STEPS:
        compare(name, SD15 | SETTINGS[name] | options, steps)


SCHEDULED = [case for case in CASES if SIGMAS[0] in OPTIONS[case[0]] and case[0] != "EulerAncestralDiscreteScheduler"]


@pytest.mark.parametrize(("name", "spacing", "prediction_type"), SCHEDULED)
def test_sigma_schedules(name: str, spacing: str, prediction_type: str) -> None:
    config = SD15 | SETTINGS[name] | {"timestep_spacing": spacing, "prediction_type": prediction_type}
    for flags in SIGMAS[: 3 if find_spec("scipy") else 2]:
        for steps in (1, 2, 5, 25):
            compare(name, config | flags, steps)


@pytest.mark.parametrize("name", MODULES)
def test_from_a_config_that_says_nothing(name: str) -> None:
    compare(name, SETTINGS[name], 10)


@pytest.mark.parametrize("name", ["DDPMScheduler", "LCMScheduler", "TCDScheduler", "DPMSolverMultistepScheduler"])
def test_a_list_of_timesteps(name: str) -> None:
    compare(name, SD15 | SETTINGS[name] | {"timesteps": [999, 850, 333, 19]}, 4)


@pytest.mark.skipif(not HAS_TORCHSDE, reason="torchsde is not installed")
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # the highest level, rounded to float32
@pytest.mark.parametrize("steps", [2, 5, 25])
def test_increments_of_the_brownian_tree_of_torchsde(steps: int) -> None:
    """Given the increments of torchsde's tree from call to call, the path is diffusers' with that tree."""
    scheduler: Any = scheduling_dpmsolver_sde.DPMSolverSDEScheduler.from_config(SD15, noise_sampler_seed=7)
    scheduler.set_timesteps(steps)
    ours = SCHEDULERS["dpmpp_sde"](SD15, steps)
    start = np.random.default_rng(0).standard_normal(SHAPE) * ours.init_noise_sigma
    theirs, latents = torch.from_numpy(start), start
    least, most = (float(level) for level in (scheduler.sigmas[scheduler.sigmas > 0].min(), scheduler.sigmas.max()))
    tree = scheduling_dpmsolver_sde.BrownianTreeNoiseSampler(theirs, least, most, 7)
    history: Any = ()
    for i, t in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(theirs, t).numpy(), float(t))
        theirs = scheduler.step(torch.from_numpy(output), t, theirs, return_dict=False)[0]
        answer: Any = network(ours.scale_model_input(latents, i), float(t))  # type: ignore[arg-type]
        noise: Any = tree(*ours.sigmas[i : i + 2]).numpy() if ours.draws_noise(i) else None
        latents, history = ours.step(answer, i, latents, history, noise)  # type: ignore[assignment, arg-type]
        # The tree's times are rounded to its tolerance, 1e-6.
        np.testing.assert_allclose(latents, theirs.numpy(), rtol=0, atol=1e-4)


def test_what_diffusers_refuses_is_refused() -> None:
    for name in ("LCMScheduler", "TCDScheduler"):
        with pytest.raises(UsageError, match="num_inference_steps 51; wanted 1 to original_inference_steps, 50"):
            SCHEDULERS[name](SD15, 51)
