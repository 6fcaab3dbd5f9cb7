"""The samplers. To add one: a module here, and its line in `SAMPLERS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .ancestral import dpm2_a, euler_a
from .ancestral import read_config as euler_a_config
from .base import Scheduler
from .config import ConfigReader, check_strength, pick
from .consistency import lcm, read_lcm_config, read_tcd_config, tcd
from .ddim import ddim
from .ddim import read_config as ddim_config
from .ddpm import ddpm
from .ddpm import read_config as ddpm_config
from .deis import deis
from .deis import read_config as deis_config
from .dpm2 import dpm2
from .dpm_multistep import dpmpp_2m
from .dpm_multistep import read_config as multistep_config
from .dpm_sde import dpmpp_sde
from .dpm_singlestep import dpmpp_2s
from .dpm_singlestep import read_config as singlestep_config
from .edm import EULER as EDM_EULER
from .edm import MULTISTEP as EDM_MULTISTEP
from .edm import edm_dpmpp_2m, edm_euler
from .euler import EXPLODING, euler
from .flow_match import EULER as FLOW_EULER
from .flow_match import HEUN as FLOW_HEUN
from .flow_match import flow_euler, flow_heun
from .heun import heun
from .ipndm import ipndm
from .ipndm import read_config as ipndm_config
from .lms import lms
from .pndm import pndm
from .pndm import read_config as pndm_config
from .sa_solver import read_config as sa_solver_config
from .sa_solver import sa_solver
from .sigmas import SIGMA_SCHEDULES
from .unipc import read_config as unipc_config
from .unipc import unipc

Maker = Callable[[Mapping[str, Any], int], Scheduler]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A line of the table of samplers. `make` takes a scheduler_config and num_inference_steps.

    One of `few_steps` is for models that were distilled to a few.
    """

    name: str
    make: Maker
    reader: ConfigReader
    paper: str
    diffusers: str | None = None
    calls_per_step: int = 1
    draws_noise: bool = False
    brownian: bool = False
    few_steps: bool = False

    @property
    def sigmas(self) -> tuple[str, ...]:
        """The sigma schedules that it can use, its own first."""
        return self.reader.sigmas


def _with(make: Maker, **settings: Any) -> Maker:
    return lambda config, num_inference_steps: make({**config, **settings}, num_inference_steps)


def _karras(make: Maker) -> Maker:
    """`make` with Karras' sigmas, unless told of others."""
    return lambda config, n: make({**config, "sigmas": config.get("sigmas") or "karras"}, n)


DPM = "arXiv:2211.01095"
EDM = "arXiv:2206.00364"
FLOW = "arXiv:2403.03206"
TURBO = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
# Where a name has no class of its own, diffusers needs settings of the class for it.
SAMPLERS = (
    Sampler(
        name="ddpm",
        diffusers="DDPMScheduler",
        make=ddpm,
        reader=ddpm_config,
        paper="arXiv:2006.11239",
        draws_noise=True,
    ),
    Sampler(name="ddim", diffusers="DDIMScheduler", make=ddim, reader=ddim_config, paper="arXiv:2010.02502"),
    Sampler(name="pndm", diffusers="PNDMScheduler", make=pndm, reader=pndm_config, paper="arXiv:2202.09778"),
    Sampler(name="plms", make=_with(pndm, skip_prk_steps=True), reader=pndm_config, paper="arXiv:2202.09778"),
    Sampler(name="ipndm", diffusers="IPNDMScheduler", make=ipndm, reader=ipndm_config, paper="arXiv:2202.09778"),
    Sampler(name="lms", diffusers="LMSDiscreteScheduler", make=lms, reader=EXPLODING, paper=EDM),
    Sampler(name="euler", diffusers="EulerDiscreteScheduler", make=euler, reader=EXPLODING, paper=EDM),
    Sampler(
        name="euler_a",
        diffusers="EulerAncestralDiscreteScheduler",
        make=euler_a,
        reader=euler_a_config,
        paper="arXiv:2011.13456",
        draws_noise=True,
    ),
    Sampler(name="heun", diffusers="HeunDiscreteScheduler", make=heun, reader=EXPLODING, paper=EDM, calls_per_step=2),
    Sampler(name="dpm2", diffusers="KDPM2DiscreteScheduler", make=dpm2, reader=EXPLODING, paper=EDM, calls_per_step=2),
    Sampler(
        name="dpm2_a",
        diffusers="KDPM2AncestralDiscreteScheduler",
        make=dpm2_a,
        reader=EXPLODING,
        paper=EDM,
        calls_per_step=2,
        draws_noise=True,
    ),
    Sampler(
        name="dpmpp_2m", diffusers="DPMSolverMultistepScheduler", make=dpmpp_2m, reader=multistep_config, paper=DPM
    ),
    Sampler(name="dpmpp_2m_karras", make=_karras(dpmpp_2m), reader=multistep_config, paper=DPM),
    Sampler(name="dpmpp_3m", make=_with(dpmpp_2m, solver_order=3), reader=multistep_config, paper=DPM),
    Sampler(
        name="dpmpp_2m_sde",
        make=_with(dpmpp_2m, algorithm_type="sde-dpmsolver++"),
        reader=multistep_config,
        paper=DPM,
        draws_noise=True,
    ),
    Sampler(
        name="dpmpp_sde",
        diffusers="DPMSolverSDEScheduler",
        make=dpmpp_sde,
        reader=EXPLODING,
        paper=DPM,
        calls_per_step=2,
        draws_noise=True,
        brownian=True,
    ),
    Sampler(
        name="dpmpp_2s", diffusers="DPMSolverSinglestepScheduler", make=dpmpp_2s, reader=singlestep_config, paper=DPM
    ),
    Sampler(
        name="unipc", diffusers="UniPCMultistepScheduler", make=unipc, reader=unipc_config, paper="arXiv:2302.04867"
    ),
    Sampler(name="deis", diffusers="DEISMultistepScheduler", make=deis, reader=deis_config, paper="arXiv:2204.13902"),
    Sampler(
        name="sa_solver",
        diffusers="SASolverScheduler",
        make=sa_solver,
        reader=sa_solver_config,
        paper="arXiv:2309.05019",
        draws_noise=True,
    ),
    Sampler(
        name="lcm",
        diffusers="LCMScheduler",
        make=lcm,
        reader=read_lcm_config,
        paper="arXiv:2310.04378",
        draws_noise=True,
        few_steps=True,
    ),
    Sampler(
        name="tcd",
        diffusers="TCDScheduler",
        make=tcd,
        reader=read_tcd_config,
        paper="arXiv:2402.19159",
        draws_noise=True,
        few_steps=True,
    ),
    Sampler(name="edm_euler", diffusers="EDMEulerScheduler", make=edm_euler, reader=EDM_EULER, paper=EDM),
    Sampler(
        name="edm_dpmpp_2m",
        diffusers="EDMDPMSolverMultistepScheduler",
        make=edm_dpmpp_2m,
        reader=EDM_MULTISTEP,
        paper=DPM,
    ),
    Sampler(
        name="flow_euler", diffusers="FlowMatchEulerDiscreteScheduler", make=flow_euler, reader=FLOW_EULER, paper=FLOW
    ),
    Sampler(
        name="flow_heun",
        diffusers="FlowMatchHeunDiscreteScheduler",
        make=flow_heun,
        reader=FLOW_HEUN,
        paper=FLOW,
        calls_per_step=2,
    ),
)
# Name -> maker(scheduler_config, num_inference_steps), under the short name and under that of diffusers' class.
SCHEDULERS: dict[str, Maker] = {
    name: sampler.make for sampler in SAMPLERS for name in (sampler.name, sampler.diffusers) if name is not None
}

__all__ = [
    "SAMPLERS",
    "SCHEDULERS",
    "SIGMA_SCHEDULES",
    "Sampler",
    "Scheduler",
    "find_sampler",
    "is_for_few_steps",
    "make_scheduler",
    "short_name",
    "start_call",
]


def make_scheduler(
    name: str,
    config: Mapping[str, Any],
    num_inference_steps: int,
    *,
    sigmas: str | Sequence[float] | None = None,
    timesteps: Sequence[float] | None = None,
) -> Scheduler:
    """A sampler of either of its names, for a `scheduler_config.json`.

    Args:
        name: a name in `SCHEDULERS`.
        config: what the model's scheduler_config.json says.
        num_inference_steps: 1 to the config's num_train_timesteps.
        sigmas: a name in `SIGMA_SCHEDULES`, or falling levels of noise over signal (of noise, for a flow), one a step;
            None is what the config says.
        timesteps: falling training timesteps, one a step, instead of sigmas.

    Raises:
        UsageError: something is unknown, or cannot be used by this sampler.
    """
    make = pick("scheduler", name, SCHEDULERS)
    if isinstance(sigmas, str):
        pick("sigmas", sigmas, SIGMA_SCHEDULES)
    given = {key: value for key, value in (("sigmas", sigmas), ("timesteps", timesteps)) if value is not None}
    return make({**config, **given}, num_inference_steps)


def start_call(name: str, num_inference_steps: int, strength: float) -> int:
    """The call at which image-to-image starts, from latents made with `add_noise` there: 0 for a strength of 1.

    Raises:
        UsageError: strength is not above 0 and up to 1, or the name is unknown.
    """
    check_strength(strength)
    calls_per_step = find_sampler(name).calls_per_step
    return (num_inference_steps - int(num_inference_steps * strength)) * calls_per_step


def is_for_few_steps(config: Mapping[str, Any], name: str) -> bool:
    """Whether a model with this scheduler_config was distilled to a few steps, or the sampler `name` is for such a one.

    Nothing else tells those of adversarial distillation, SDXL-Turbo (arXiv:2311.17042) and its like: their config is
    that of Euler's method or its ancestral form with trailing timesteps, and they predict the noise.
    """
    own = config.get("_class_name", "")
    trailing = config.get("timestep_spacing") == "trailing" and not config.get("rescale_betas_zero_snr")
    turbo = trailing and own in TURBO and config.get("prediction_type", "epsilon") == "epsilon"
    return turbo or any(find_sampler(sampler).few_steps for sampler in (own, name) if sampler)


def find_sampler(name: str) -> Sampler:
    """The line of the table for either of a sampler's names.

    Raises:
        UnknownName: it is in no table.
    """
    pick("scheduler", name, SCHEDULERS)
    return next(sampler for sampler in SAMPLERS if name in (sampler.name, sampler.diffusers))


def short_name(name: str) -> str:
    """The short name of a sampler, from either of its names.

    Raises:
        UnknownName: it is in no table.
    """
    return find_sampler(name).name
