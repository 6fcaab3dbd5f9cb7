"""What diffusers' own tests say of their samplers: the sum and the mean of |latents| after a full run of a toy network.

The figures are those of tests/schedulers/test_scheduler_*.py in github.com/huggingface/diffusers at commit 58eb52c, on
a CPU; each names its file and test. Left out are those of IPNDMScheduler, whose test runs on with the history of the
run before, and those of classes that we have no sampler for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from edgediffusion.runtime.arrays import F32
from edgediffusion.runtime.noise import NoiseSource
from edgediffusion.runtime.noise_brownian import TorchSdeNoise
from edgediffusion.runtime.noise_torch import TorchCpuNoise
from edgediffusion.runtime.schedulers import SCHEDULERS, Scheduler

LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CLIPPED = {**LINEAR, "clip_sample": True}
LONG = {**LINEAR, "num_train_timesteps": 1100}
UNIPC = {**LINEAR, "solver_order": 2, "solver_type": "bh2", "final_sigmas_type": "sigma_min"}
EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
SOLVER = {"solver_order": 2, "lower_order_final": False, "final_sigmas_type": "sigma_min"}
DETERMINED = {**LATENT, "eta": 0.0}
ENDING = {**LINEAR, **SOLVER}
V = {"prediction_type": "v_prediction"}
KARRAS = {"use_karras_sigmas": True}
THRESHOLD = {"thresholding": True, "dynamic_thresholding_ratio": 0.87, "sample_max_value": 0.5}
SHAPE = (4, 3, 8, 8)
LINE = (4, 3, 8)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A test of diffusers: `source` is its file and name, without what all of them begin with.

    With a `start` the run starts at that call, from the samples with noise; `bare` starts there from the samples.
    diffusers' tables are float32, and few digits are left of 1 - alphas_cumprod at the lowest timesteps: where that
    shows, `sum_in_float64` is what the same test of diffusers gives when its module computes in float64.
    """

    source: str
    config: dict[str, Any]
    mean: float
    sum: float | None = None
    sum_in_float64: float | None = None
    steps: int = 10
    start: int = 0
    bare: bool = False
    shape: tuple[int, ...] = SHAPE
    sum_tolerance: float = 1e-2
    mean_tolerance: float = 1e-3


FIGURES: dict[str, tuple[Figure, ...]] = {
    "DDIMScheduler": (
        Figure(source="ddim::no_noise", config=CLIPPED, sum=172.0067, mean=0.223967),
        Figure(source="ddim::with_v_prediction", config=CLIPPED | V, sum=52.5302, mean=0.0684),
        Figure(
            source="ddim::with_set_alpha_to_one",
            config=CLIPPED | {"set_alpha_to_one": True, "beta_start": 0.01},
            sum=149.8295,
            mean=0.1951,
        ),
        Figure(
            source="ddim::with_no_set_alpha_to_one",
            config=CLIPPED | {"set_alpha_to_one": False, "beta_start": 0.01},
            sum=149.0784,
            mean=0.1941,
        ),
        Figure(source="ddim::with_noise", config=CLIPPED, sum=354.5418, mean=0.4616, start=8),
    ),
    "DDPMScheduler": (
        Figure(source="ddpm::no_noise", config=CLIPPED, sum=258.9606, mean=0.3372, steps=1000),
        Figure(source="ddpm::with_v_prediction", config=CLIPPED | V, sum=202.0296, mean=0.2631, steps=1000),
        Figure(
            source="ddpm::with_noise",
            config=CLIPPED,
            sum=387.9466,
            sum_in_float64=387.9673,
            mean=0.5051,
            steps=1000,
            start=998,
        ),
    ),
    "PNDMScheduler": (
        Figure(source="pndm::no_noise", config=LINEAR, sum=198.1318, mean=0.2580),
        Figure(source="pndm::with_v_prediction", config=LINEAR | V, sum=67.3986, mean=0.0878),
        Figure(
            source="pndm::with_set_alpha_to_one",
            config=LINEAR | {"set_alpha_to_one": True, "beta_start": 0.01},
            sum=230.0399,
            mean=0.2995,
        ),
        Figure(
            source="pndm::with_no_set_alpha_to_one",
            config=LINEAR | {"set_alpha_to_one": False, "beta_start": 0.01},
            sum=186.9482,
            mean=0.2434,
        ),
    ),
    "LMSDiscreteScheduler": (
        Figure(source="lms::no_noise", config=LONG, sum=1006.388, mean=1.31),
        Figure(source="lms::with_v_prediction", config=LONG | V, sum=0.0017, mean=2.2676e-06),
        Figure(
            source="lms::device_karras_sigmas",
            config=LONG | KARRAS,
            sum=3812.9927,
            sum_in_float64=3813.0240,
            mean=4.9648,
            sum_tolerance=2e-2,
        ),
        Figure(source="lms::with_noise", config=LONG, sum=27663.6895, sum_in_float64=27663.4767, mean=36.0204, start=8),
    ),
    "EulerDiscreteScheduler": (
        Figure(source="euler::no_noise", config=LONG, sum=10.0807, mean=0.0131),
        Figure(source="euler::with_v_prediction", config=LONG | V, sum=0.0002, mean=2.2676e-06),
        Figure(
            source="euler::device_karras_sigmas", config=LONG | KARRAS, sum=124.52299499511719, mean=0.16213932633399963
        ),
        Figure(
            source="euler::with_noise", config=LONG, sum=57062.9297, sum_in_float64=57062.8580, mean=74.3007, start=8
        ),
    ),
    "EulerAncestralDiscreteScheduler": (
        Figure(source="euler_ancestral::no_noise", config=LONG, sum=152.3192, mean=0.1983),
        Figure(source="euler_ancestral::with_v_prediction", config=LONG | V, sum=108.4439, mean=0.1412),
        Figure(source="euler_ancestral::with_noise", config=LONG, sum=56163.0508, mean=73.1290, start=8),
    ),
    "HeunDiscreteScheduler": (
        Figure(source="heun::no_noise", config=LONG, sum=0.1233, mean=0.0002),
        Figure(source="heun::with_v_prediction", config=LONG | V, sum=4.6934e-07, mean=6.1112e-10),
        Figure(source="heun::device_karras_sigmas", config=LONG | KARRAS, sum=0.00015, mean=1.9869554535034695e-07),
        Figure(
            source="heun::with_noise", config=LONG, sum=75074.8906, sum_in_float64=75074.8654, mean=97.7538, start=16
        ),
    ),
    "KDPM2DiscreteScheduler": (
        Figure(source="kdpm2_discrete::no_noise", config=LONG, sum=20.4125, mean=0.0266),
        Figure(source="kdpm2_discrete::with_v_prediction", config=LONG | V, sum=4.6934e-07, mean=6.1112e-10),
        Figure(
            source="kdpm2_discrete::with_noise",
            config=LONG,
            sum=70408.4062,
            sum_in_float64=70408.5268,
            mean=91.6776,
            start=16,
        ),
    ),
    "KDPM2AncestralDiscreteScheduler": (
        Figure(
            source="kdpm2_ancestral::no_noise",
            config=LONG,
            sum=13979.9433,
            sum_in_float64=13979.9558,
            mean=18.2030,
            mean_tolerance=5e-3,
        ),
        Figure(source="kdpm2_ancestral::with_v_prediction", config=LONG | V, sum=331.8133, mean=0.4320),
        Figure(
            source="kdpm2_ancestral::with_noise",
            config=LONG,
            sum=93087.3437,
            mean=121.2074,
            mean_tolerance=5e-3,
            start=16,
        ),
    ),
    "DPMSolverSDEScheduler": (
        Figure(source="dpm_sde::no_noise", config=LONG, sum=162.52383422851562, mean=0.211619570851326),
        Figure(source="dpm_sde::with_v_prediction", config=LONG | V, sum=119.8487548828125, mean=0.1560530662536621),
        Figure(
            source="dpm_sde::device_karras_sigmas",
            config=LONG | KARRAS,
            sum=170.3135223388672,
            mean=0.23003872730981811,
            mean_tolerance=1e-2,
        ),
    ),
    "DPMSolverMultistepScheduler": (
        Figure(source="dpm_multi::no_noise", config=ENDING, mean=0.3301),
        Figure(source="dpm_multi::with_noise", config=ENDING, sum=318.4111, mean=0.4146, start=5),
        Figure(source="dpm_multi::no_noise_thres", config=ENDING | THRESHOLD, mean=1.1364),
        Figure(source="dpm_multi::with_v_prediction", config=ENDING | V, mean=0.2251),
        Figure(source="dpm_multi::with_karras_and_v_prediction", config=ENDING | V | KARRAS, mean=0.2096),
        Figure(source="dpm_multi::with_lu_and_v_prediction", config=ENDING | V | {"use_lu_lambdas": True}, mean=0.1554),
    ),
    "DPMSolverSinglestepScheduler": (
        Figure(source="dpm_single::no_noise", config=ENDING, mean=0.2791),
        Figure(source="dpm_single::full_uneven_loop", config=ENDING, mean=0.2574, steps=50, start=3, bare=True),
        Figure(source="dpm_single::with_karras", config=ENDING | KARRAS, mean=0.2248),
        Figure(source="dpm_single::with_v_prediction", config=ENDING | V, mean=0.1453),
        Figure(source="dpm_single::with_karras_and_v_prediction", config=ENDING | V | KARRAS, mean=0.0649),
        Figure(source="dpm_single::with_noise", config=ENDING, sum=269.2187, mean=0.3505, start=5),
    ),
    "UniPCMultistepScheduler": (
        Figure(source="unipc::no_noise", config=UNIPC, mean=0.2464),
        Figure(source="unipc::with_karras", config=UNIPC | KARRAS, mean=0.2925),
        Figure(source="unipc::with_v_prediction", config=UNIPC | V, mean=0.1014),
        Figure(source="unipc::with_karras_and_v_prediction", config=UNIPC | V | KARRAS, mean=0.1966),
        Figure(source="unipc::with_noise", config=UNIPC, sum=315.5757, mean=0.4109, start=8),
        Figure(source="unipc::1D no_noise", config=UNIPC, mean=0.2441, shape=LINE),
        Figure(source="unipc::1D with_karras", config=UNIPC | KARRAS, mean=0.2898, shape=LINE),
        Figure(source="unipc::1D with_v_prediction", config=UNIPC | V, mean=0.1014, shape=LINE),
        Figure(source="unipc::1D with_karras_and_v_prediction", config=UNIPC | V | KARRAS, mean=0.1944, shape=LINE),
        Figure(source="unipc::1D with_noise", config=UNIPC, sum=39.0870, mean=0.4072, start=8, shape=LINE),
    ),
    "DEISMultistepScheduler": (
        Figure(source="deis::no_noise", config=LINEAR, mean=0.23916),
        Figure(source="deis::with_v_prediction", config=LINEAR | V, mean=0.091),
        Figure(source="deis::with_noise", config=LINEAR, sum=315.3016, mean=0.41054, start=8),
    ),
    "SASolverScheduler": (
        Figure(source="sasolver::no_noise", config=LONG, sum=337.394287109375, mean=0.43931546807289124),
        Figure(source="sasolver::with_v_prediction", config=LONG | V, sum=193.1467742919922, mean=0.2514931857585907),
        Figure(
            source="sasolver::device_karras_sigmas",
            config=LONG | KARRAS,
            sum=837.2554931640625,
            sum_in_float64=837.2769,
            mean=1.0901764631271362,
            mean_tolerance=1e-2,
        ),
    ),
    "LCMScheduler": (
        Figure(source="lcm::onestep", config=LATENT, sum=18.7097, mean=0.0244, steps=1, sum_tolerance=1e-3),
        Figure(source="lcm::multistep", config=LATENT, sum=197.7616, mean=0.2575, sum_tolerance=1e-3),
    ),
    "TCDScheduler": (
        Figure(source="tcd::onestep_deter", config=DETERMINED, sum=29.8715, mean=0.0389, steps=1, sum_tolerance=1e-3),
        Figure(source="tcd::multistep_deter", config=DETERMINED, sum=181.2040, mean=0.2359, sum_tolerance=1e-3),
    ),
    "EDMEulerScheduler": (
        Figure(
            source="edm_euler::no_noise",
            config=EDM | {"num_train_timesteps": 256},
            sum=34.1855,
            mean=0.044,
            sum_tolerance=1e-3,
        ),
    ),
    "EDMDPMSolverMultistepScheduler": (
        Figure(source="edm_dpmsolver_multistep::no_noise", config=EDM | SOLVER, mean=0.0001),
        Figure(source="edm_dpmsolver_multistep::with_noise", config=EDM | SOLVER, sum=8.1661, mean=0.0106, start=5),
        Figure(source="edm_dpmsolver_multistep::no_noise_thres", config=EDM | SOLVER | THRESHOLD, mean=0.0080),
        Figure(source="edm_dpmsolver_multistep::with_v_prediction", config=EDM | SOLVER | V, mean=0.0092),
    ),
}


def ramp(shape: tuple[int, ...]) -> F32:
    """diffusers' samples: even steps from 0 up to 1, of which neighbours go to different pictures of the batch."""
    count = int(np.prod(shape))
    steps = (np.arange(count) / count).astype(np.float32)
    return np.moveaxis(steps.reshape(*shape[1:], shape[0]), -1, 0)


def toy_network(sample: F32, timestep: np.float32) -> F32:
    return sample * timestep / (timestep + 1)


def shown(name: str, scheduler: Scheduler, latents: F32, i: int) -> tuple[F32, F32]:
    """What the network sees, and what the step starts from. Most of diffusers' tests step from the scaled latents."""
    if name == "EDMDPMSolverMultistepScheduler":
        return latents, latents
    scaled = scheduler.scale_model_input(latents, i)
    return scaled, latents if name == "EDMEulerScheduler" else scaled


@pytest.mark.parametrize(
    ("name", "figure"), [pytest.param(name, figure, id=figure.source) for name in FIGURES for figure in FIGURES[name]]
)
def test_figure(name: str, figure: Figure) -> None:
    scheduler = SCHEDULERS[name](figure.config, figure.steps)
    noise: NoiseSource = TorchCpuNoise(0)
    if name == "DPMSolverSDEScheduler":
        noise = TorchSdeNoise(0, 1, scheduler.sigmas, 0)
    latents = ramp(figure.shape)
    # The solvers' tests do not scale the samples; but for that of EDM it would be by 1.
    if name != "EDMDPMSolverMultistepScheduler":
        latents = latents * np.float32(scheduler.init_noise_sigma)
    if figure.start and not figure.bare:
        # diffusers' noise is the samples in reverse.
        latents = scheduler.add_noise(latents, np.flip(ramp(figure.shape)), figure.start)
    history: tuple[F32, ...] = ()
    for i in range(figure.start, len(scheduler.timesteps)):
        seen, latents = shown(name, scheduler, latents, i)
        fresh = noise.normal(figure.shape)[0] if scheduler.draws_noise(i) else None
        latents, history = scheduler.step(toy_network(seen, scheduler.timesteps[i]), i, latents, history, fresh)
    result = np.abs(latents.astype(np.float64))
    assert result.mean() == pytest.approx(figure.mean, rel=0, abs=figure.mean_tolerance)
    if figure.sum is not None:
        wanted = figure.sum if figure.sum_in_float64 is None else figure.sum_in_float64
        assert wanted == pytest.approx(figure.sum, rel=1e-4)
        assert result.sum() == pytest.approx(wanted, rel=0, abs=figure.sum_tolerance)
