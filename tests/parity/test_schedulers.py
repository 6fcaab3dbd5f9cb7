"""Each sampler against diffusers, step by step, with diffusers itself made to compute in float64."""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
from numpy.typing import NDArray

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.schedulers import SCHEDULERS
from edgediffusion.runtime.schedulers.config import SchedulerConfig

Latents = NDArray[Any]
History = tuple[Latents, ...]
CLASSES = sorted(name for name in SCHEDULERS if name.endswith("Scheduler"))
STEPS = (1, 2, 3, 5, 10, 14, 15, 25, 50)
SD15 = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "skip_prk_steps": True,
    "trained_betas": None,
}


class Double:
    """A module in which float32 is float64."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return self._module.float64 if name == "float32" else getattr(self._module, name)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sys.modules[getattr(diffusers, name).__module__] for name in CLASSES):
        monkeypatch.setattr(module, "torch", Double(torch))
        monkeypatch.setattr(module, "np", Double(np))


def network(sample: Latents, timestep: float) -> Latents:
    """A fixed nonlinear function in place of the UNet, which gets its timestep in float32."""
    result: Latents = np.tanh(1.3 * sample + math.cos(np.float32(timestep) / 150)) - 0.2 * sample
    return result


def noise(dtype: type[np.floating[Any]]) -> Latents:
    return np.random.default_rng(0).standard_normal((2, 4, 3, 3)).astype(dtype)


def their_run(name: str, config: dict[str, Any], steps: int, start: Latents) -> Iterator[tuple[float, Latents]]:
    scheduler = getattr(diffusers, name).from_config(config)
    scheduler.set_timesteps(steps)
    latents = torch.from_numpy(start) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        sample = scheduler.scale_model_input(latents, t)
        output = torch.from_numpy(network(sample.numpy(), float(t)))
        latents = scheduler.step(output, t, latents, return_dict=False)[0]
        yield float(t), latents.numpy()


def our_run(name: str, config: dict[str, Any], steps: int, start: Latents) -> Iterator[tuple[float, Latents]]:
    scheduler = SCHEDULERS[name](config, steps)
    latents: Latents = start * scheduler.init_noise_sigma
    history: History = ()
    for i, t in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(latents, i), float(t))
        latents, history = scheduler.step(output, i, latents, history, None)
        yield float(t), latents


def assert_same_path(
    name: str, config: dict[str, Any], steps: int, *, rtol: float, dtype: type[np.floating[Any]] = np.float64
) -> None:
    start = noise(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own divisions by zero and deprecations
        theirs = list(their_run(name, config, steps, start))
    ours = list(our_run(name, config, steps, start))
    assert len(ours) == len(theirs)
    for step, ((our_t, a), (their_t, b)) in enumerate(zip(ours, theirs, strict=True)):
        assert our_t == pytest.approx(their_t, abs=1e-4), f"step {step}: timestep {our_t}, diffusers' {their_t}"
        assert a.dtype == dtype
        error = float(np.abs(a.astype(np.float64) - b).max() / np.abs(b).max())
        assert error <= rtol, f"step {step} (timestep {their_t}): relative error {error:.3g} > {rtol:.3g}"


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("name", CLASSES)
def test_spacing_and_prediction(name: str, spacing: str, prediction_type: str) -> None:
    config = SD15 | {"timestep_spacing": spacing, "prediction_type": prediction_type}
    for steps in STEPS:
        assert_same_path(name, config, steps, rtol=1e-10)


OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "DDIMScheduler": (
        {"set_alpha_to_one": True, "steps_offset": 0},
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.4, "prediction_type": "v_prediction"},
        {"clip_sample": True, "clip_sample_range": 0.4, "prediction_type": "sample"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "leading"},
    ),
    "EulerDiscreteScheduler": (
        {"steps_offset": 0, "timestep_spacing": "leading"},
        {"final_sigmas_type": "sigma_min"},
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "timestep_spacing": "leading", "final_sigmas_type": "sigma_min"},
        {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
    "DPMSolverMultistepScheduler": (
        {"solver_order": 1},
        {"solver_type": "heun"},
        {"solver_type": "logrho", "algorithm_type": "deis", "final_sigmas_type": "sigma_min"},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"lower_order_final": True, "final_sigmas_type": "sigma_min"},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min", "euler_at_final": True},
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"},
        {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
        {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
        {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"},
        {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "leading"},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
}
BETAS: tuple[dict[str, Any], ...] = (
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist()},
)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    ("name", "options"), [(name, options) for name in CLASSES for options in OPTIONS.get(name, ()) + BETAS], ids=str
)
def test_options(name: str, options: dict[str, Any]) -> None:
    for steps in STEPS:
        assert_same_path(name, SD15 | options, steps, rtol=1e-9)


@pytest.mark.parametrize("name", CLASSES)
def test_as_diffusers_is(name: str) -> None:
    # diffusers unchanged: its tables are float32, so alphas_cumprod carries a few 1e-7 by the end of its cumprod.
    for steps in STEPS:
        assert_same_path(name, SD15, steps, rtol=2e-5, dtype=np.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("source", [*CLASSES, "PNDMScheduler"])
@pytest.mark.parametrize("name", CLASSES)
def test_from_the_config_of_another_class(name: str, source: str) -> None:
    config = dict(getattr(diffusers, source).from_config(SD15 | {"_class_name": source}).config)
    assert_same_path(name, config, 10, rtol=1e-10)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", CLASSES)
def test_from_a_config_that_says_nothing(name: str) -> None:
    assert_same_path(name, {}, 10, rtol=1e-10)


def keys(name: str) -> set[str]:
    return set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}


@pytest.mark.parametrize("name", CLASSES)
def test_a_key_of_diffusers_is_read_or_refused(name: str) -> None:
    """Whatever key diffusers' class knows changes our tables, or is refused where it would change diffusers'."""
    others = {"dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"}
    for key in keys(name) - others - {field for field in vars(SchedulerConfig())}:
        with pytest.raises(UsageError, match=f"{key} 'x' is not supported"):
            SCHEDULERS[name](SD15 | {key: "x"}, 10)


@pytest.mark.parametrize("source", [entry.name for entry in KarrasDiffusionSchedulers])
@pytest.mark.parametrize("name", CLASSES)
def test_a_default_config_of_every_class_is_understood(name: str, source: str) -> None:
    parameters = inspect.signature(getattr(diffusers, source).__init__).parameters
    config = {key: value.default for key, value in parameters.items() if value.default is not value.empty}
    config |= {"prediction_type": "epsilon", "beta_schedule": "linear", "final_sigmas_type": "zero"}
    assert len(SCHEDULERS[name](config, 10).timesteps) == 10
