from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edgediffusion.engines.errors import UnknownName, UsageError
from edgediffusion.runtime.schedulers import SCHEDULERS
from edgediffusion.runtime.schedulers.euler import read_config


@pytest.mark.parametrize(
    ("name", "config", "steps", "message"),
    [
        (
            "euler",
            {"beta_schedule": "sigmoid"},
            4,
            r"unknown beta_schedule 'sigmoid'; known: linear, scaled_linear, squa",
        ),
        (
            "euler",
            {"timestep_spacing": "even"},
            4,
            "unknown timestep_spacing 'even'; known: leading, linspace, trailing",
        ),
        (
            "ddim",
            {"prediction_type": "flow"},
            4,
            "unknown prediction_type 'flow'; known: epsilon, sample, v_prediction",
        ),
        ("euler", {"final_sigmas_type": "one"}, 4, "unknown final_sigmas_type 'one'; known: sigma_min, zero"),
        ("dpmpp_2m", {"solver_type": "bh3"}, 4, "unknown solver_type 'bh3'; known: bh1, bh2, heun, logrho, midpoint"),
    ],
)
def test_an_unknown_choice_lists_the_known(name: str, config: Mapping[str, Any], steps: int, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        SCHEDULERS[name](config, steps)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "euler",
            {"timestep_type": "continuous"},
            "timestep_type 'continuous' is not supported here; known: 'discrete'",
        ),
        ("euler", {"use_beta_sigmas": True}, "use_beta_sigmas True is not supported here; known: False, None"),
        ("ddim", {"thresholding": True}, "thresholding True is not supported here; known: False"),
        ("dpmpp_2m", {"solver_order": 3}, "solver_order 3 is not supported here; known: 1, 2"),
        ("dpmpp_2m", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type 'sde-dpmsolver..' is not supported here"),
        ("euler", {"warp": 2}, r"key 'warp' \(2\) is not known and may change the picture; remove it, or pip install"),
        (
            "ddim",
            {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
            "prediction_type 'epsilon' cannot start from zero SNR; use timestep_spacing 'leading'",
        ),
    ],
)
def test_what_would_change_the_numbers_is_refused(name: str, config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SCHEDULERS[name](config, 4)


@pytest.mark.parametrize("steps", [-1, 0, 1001])
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_steps_out_of_range(name: str, steps: int) -> None:
    with pytest.raises(UsageError, match=f"num_inference_steps {steps}; wanted 1 to 1000"):
        SCHEDULERS[name]({}, steps)


def test_steps_that_leave_no_stride() -> None:
    with pytest.raises(UsageError, match="num_inference_steps 1000 with timestep_spacing 'leading': all timesteps are"):
        SCHEDULERS["dpmpp_2m"]({"timestep_spacing": "leading"}, 1000)


def test_steps_that_start_beyond_the_training() -> None:
    with pytest.raises(UsageError, match="1000 with steps_offset 1 starts at timestep 1000, beyond the 1000 of the tr"):
        SCHEDULERS["ddim"]({"steps_offset": 1}, 1000)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_keys_that_change_nothing_pass(name: str) -> None:
    plain = SCHEDULERS[name]({}, 5)
    config = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "future": None, "other": False, "rho": 7.0}
    np.testing.assert_array_equal(SCHEDULERS[name](config, 5).sigmas, plain.sigmas)


def test_values_that_were_defaults_give_way_to_this_samplers_own() -> None:
    config = {"timestep_spacing": "leading", "steps_offset": 3, "_use_default_values": ["timestep_spacing"]}
    assert read_config(config).timestep_spacing == "linspace"
    assert read_config(config).steps_offset == 3


@pytest.mark.parametrize("steps", [61, 103, 998])
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_trailing_spacing_has_no_step_too_many(name: str, steps: int) -> None:
    scheduler = SCHEDULERS[name]({"timestep_spacing": "trailing"}, steps)
    assert scheduler.timesteps.shape == (steps,)
    assert scheduler.timesteps[-1] >= 0
