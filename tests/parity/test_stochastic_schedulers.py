"""What diffusers does with noise beside the cases of bench/parity."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from edgediffusion.bench.parity.cases import SD15
from edgediffusion.bench.parity.reference import (
    compare,
    double,
    network,
    normal,
    our_path,
    their_path,
    their_scheduler,
)
from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.schedulers import SCHEDULERS

SDE = {"DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"}}


@pytest.mark.parametrize("name", ["DDPMScheduler", "LCMScheduler", "TCDScheduler", *SDE])
def test_a_list_of_timesteps(name: str) -> None:
    config, timesteps = SD15 | SDE.get(name, {}), [999, 850, 333, 19]
    with double(name):
        scheduler = their_scheduler(name, config)
        plain = scheduler.set_timesteps
        scheduler.set_timesteps = lambda _: plain(timesteps=timesteps)
        theirs = their_path(scheduler, 4, normal(np.float64))
    ours = our_path(name, config | {"timesteps": timesteps}, 4, normal(np.float64))
    assert compare(ours, theirs, 1e-6).failure is None  # LCM's scalings are float32 in diffusers


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # the highest level, rounded to float32
@pytest.mark.parametrize("steps", [2, 5, 25])
def test_increments_of_the_brownian_tree_of_torchsde(steps: int) -> None:
    """Given the increments of torchsde's tree from call to call, the path is diffusers' with that tree."""
    pytest.importorskip("torchsde")
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler

    ours = SCHEDULERS["dpmpp_sde"](SD15, steps)
    start = normal(np.float64) * ours.init_noise_sigma
    with double("DPMSolverSDEScheduler"):
        scheduler = their_scheduler("DPMSolverSDEScheduler", SD15 | {"noise_sampler_seed": 7})
        scheduler.set_timesteps(steps)
        theirs, latents = torch.from_numpy(start), cast(Any, start)
        least, most = (float(level) for level in (scheduler.sigmas[scheduler.sigmas > 0].min(), scheduler.sigmas.max()))
        tree: Any = BrownianTreeNoiseSampler(theirs, least, most, 7)
        history: Any = ()
        for i, t in enumerate(scheduler.timesteps):
            output = network(scheduler.scale_model_input(theirs, t).numpy(), float(t))
            theirs = scheduler.step(torch.from_numpy(output), t, theirs, return_dict=False)[0]
            answer: Any = network(ours.scale_model_input(latents, i), float(t))
            noise: Any = tree(*ours.sigmas[i : i + 2]).numpy() if ours.draws_noise(i) else None
            latents, history = ours.step(answer, i, latents, history, noise)
            # The tree's times are rounded to its tolerance, 1e-6.
            np.testing.assert_allclose(latents, theirs.numpy(), rtol=0, atol=1e-4)


def test_what_diffusers_refuses_is_refused() -> None:
    for name in ("LCMScheduler", "TCDScheduler"):
        with pytest.raises(UsageError, match="num_inference_steps 51; wanted 1 to original_inference_steps, 50"):
            SCHEDULERS[name](SD15, 51)
