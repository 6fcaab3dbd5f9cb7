from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from edgediffusion.engines.errors import UnknownName, UsageError
from edgediffusion.runtime.schedulers import SAMPLERS, SCHEDULERS, Sampler, make_scheduler, short_name, start_call
from edgediffusion.runtime.schedulers.euler import read_config

SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@pytest.mark.parametrize(
    ("name", "config", "steps", "message"),
    [
        (
            "euler",
            {"beta_schedule": "cubic"},
            4,
            "unknown beta_schedule 'cubic'; known: exp, laplace, linear, scaled_linear, sigmoid, squaredcos_cap_v2",
        ),
        (
            "euler",
            {"timestep_spacing": "even"},
            4,
            "unknown timestep_spacing 'even'; known: leading, linspace, trailing",
        ),
        (
            "dpmpp_2m",
            {"prediction_type": "flow"},
            4,
            "unknown prediction_type 'flow'; known: epsilon, flow_prediction, sample, v_prediction",
        ),
        ("euler", {"final_sigmas_type": "one"}, 4, "unknown final_sigmas_type 'one'; known: sigma_min, zero"),
        ("dpmpp_2m", {"solver_type": "bh3"}, 4, "unknown solver_type 'bh3'; known: heun, midpoint"),
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
            {"timestep_type": "lumpy"},
            "timestep_type 'lumpy' is not supported here; known: 'discrete', 'continuous'",
        ),
        (
            "euler",
            {"interpolation_type": "cubic"},
            "interpolation_type 'cubic' is not supported here; known: 'linear', 'log_linear'",
        ),
        (
            "ddim",
            {"prediction_type": "flow_prediction"},
            "prediction_type 'flow_prediction' is not supported here; known: 'epsilon', 'v_prediction', 'sample'",
        ),
        ("ddim", {"eta": 1.5}, "eta 1.5; wanted 0 to 1"),
        ("ipndm", {"trained_betas": [1.0, 0.0]}, "trained_betas of 2 values; ipndm wants num_inference_steps . 1, 5"),
        ("dpmpp_2m", {"solver_order": 4}, "solver_order 4 is not supported here; known: 1, 2, 3"),
        ("dpmpp_2m", {"algorithm_type": "rk"}, "unknown algorithm_type 'rk'; known: dpmsolver, dpmsolver.., sde-"),
        ("dpmpp_2m", {"algorithm_type": "dpmsolver"}, "cannot end at final_sigmas_type 'zero'; set it to 'sigma_min'"),
        (
            "dpmpp_2m",
            {
                "algorithm_type": "sde-dpmsolver",
                "solver_order": 3,
                "final_sigmas_type": "sigma_min",
                "lower_order_final": False,
            },
            "algorithm_type 'sde-dpmsolver' has no solver_order 3; wanted 1 or 2",
        ),
        (
            "dpmpp_2s",
            {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
            "unknown algorithm_type 'sde-dpmsolver'; known: dpmsolver, dpmsolver..",
        ),
        (
            "dpmpp_2s",
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "thresholding": True},
            "thresholding needs algorithm_type 'dpmsolver..' or",
        ),
        (
            "dpm2",
            {"prediction_type": "sample"},
            "prediction_type 'sample' is not supported by dpm2; take euler or heun",
        ),
        ("flow_euler", {"use_dynamic_shifting": True}, "use_dynamic_shifting needs a number mu beside it; it has none"),
        (
            "flow_euler",
            {"use_dynamic_shifting": True, "mu": 1.0, "time_shift_type": "square"},
            "unknown time_shift_type 'square'; known: exponential, linear",
        ),
        (
            "euler",
            {"use_karras_sigmas": True, "use_beta_sigmas": True},
            "more than one sigma schedule: karras, beta; wanted one",
        ),
        (
            "ddpm",
            {"sigmas": [3.0, 2.0, 1.0, 0.5]},
            "a list of sigmas is not supported by this sampler; give a list of t",
        ),
        (
            "unipc",
            {"use_flow_sigmas": True, "timesteps": [9, 8, 7, 6]},
            "a list of timesteps cannot be used with use_f",
        ),
        (
            "lcm",
            {"timesteps": [999, 8, 9, 6]},
            "timesteps 999.0, 8.0, 9.0, 6.0; wanted finite numbers above 0 that fall",
        ),
        ("ddim", {"sigmas": "karras"}, "sigmas 'karras' cannot be used by this sampler; it takes: model"),
        ("ddim", {"sigmas": [2.0, 1.0]}, "a list of sigmas is not supported by this sampler; take another, such as eu"),
        ("edm_euler", {"timesteps": [4, 3, 2, 1]}, "a list of timesteps is not supported by this sampler; give a list"),
        ("dpmpp_2m", {"use_flow_sigmas": True, "sigmas": "beta"}, "sigmas 'beta' cannot be used with use_flow_sigmas"),
        ("unipc", {"use_flow_sigmas": True, "sigmas": "beta"}, "use_flow_sigmas by unipc; it takes: karras, model"),
        ("euler", {"sigmas": [2.0, 1.0]}, "sigmas of 2 values; wanted num_inference_steps, 4"),
        (
            "euler",
            {"sigmas": [4.0, 1.0, 2.0, 0.5]},
            "sigmas 4.0, 1.0, 2.0, 0.5; wanted finite numbers above 0 that fall",
        ),
        ("euler", {"timesteps": [1000, 9, 8, 7]}, "timesteps from 1000 to 7; wanted from below 1000 to 0 or more"),
        ("euler", {"sigmas": "beta", "timesteps": [4, 3, 2, 1]}, "timesteps and a sigma schedule; wanted one of them"),
        ("pndm", {"steps_offset": 900, "skip_prk_steps": True}, "needs timestep 1650, beyond the 1000 of the training"),
        (
            "euler",
            {"beta_start": "0.1"},
            "scheduler_config.beta_start is '0.1'; wanted the types that diffusers writes",
        ),
        (
            "euler",
            {"_use_default_values": 1, "beta_end": 0.02},
            "scheduler config: .*; wanted the types that diffusers writes",
        ),
        ("euler", {"beta_end": -0.1}, "scheduler config: beta_end -0.1; wanted 0 to 1"),
        ("euler", {"num_train_timesteps": 0}, r"scheduler config: num_train_timesteps 0; wanted 1 to 1e\+06"),
        ("euler", {"sigma_max": float("nan")}, r"scheduler config: sigma_max nan; wanted 0 to 1e\+06"),
        ("euler", {"trained_betas": [0.1, 2.0]}, "scheduler config: trained_betas 2.0; wanted 0 to 1"),
        ("euler", {"trained_betas": [0.1, 0.2]}, "trained_betas of 2 values; wanted num_train_timesteps, 1000"),
        ("euler", {"sigmas": [2.0, "a"]}, r"sigmas \[2.0, 'a'\]; wanted numbers"),
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
    with pytest.raises(
        UsageError, match=f"num_inference_steps {steps}; wanted 1 to (1000|original_inference_steps, 50)"
    ):
        SCHEDULERS[name]({}, steps)


def test_steps_that_leave_no_stride() -> None:
    with pytest.raises(UsageError, match="num_inference_steps 1000 with timestep_spacing 'leading': all timesteps are"):
        SCHEDULERS["dpmpp_2m"]({"timestep_spacing": "leading"}, 1000)


def test_steps_that_start_beyond_the_training() -> None:
    with pytest.raises(UsageError, match="1000 with steps_offset 1 starts at timestep 1000, beyond the 1000 of the tr"):
        SCHEDULERS["ddim"]({"steps_offset": 1}, 1000)


@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "euler"])
def test_keys_that_change_nothing_pass(name: str) -> None:
    plain = SCHEDULERS[name]({}, 5)
    config = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "future": None, "other": False, "rho": 7.0}
    np.testing.assert_array_equal(SCHEDULERS[name](config, 5).sigmas, plain.sigmas)


def test_values_that_were_defaults_give_way_to_this_samplers_own() -> None:
    config = {"timestep_spacing": "leading", "steps_offset": 3, "_use_default_values": ["timestep_spacing"]}
    assert read_config(config).timestep_spacing == "linspace"
    assert read_config(config).steps_offset == 3


@pytest.mark.parametrize("steps", [61, 103, 998])
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m", "euler"])
def test_trailing_spacing_has_no_step_too_many(name: str, steps: int) -> None:
    scheduler = SCHEDULERS[name]({"timestep_spacing": "trailing"}, steps)
    assert scheduler.timesteps.shape == (steps,)
    assert scheduler.timesteps[-1] >= 0


def test_pndm_has_four_steps_for_runge_kutta() -> None:
    with pytest.raises(UsageError, match="num_inference_steps 3; pndm without skip_prk_steps wants 4 or more"):
        SCHEDULERS["pndm"]({}, 3)


def test_bounds_that_are_null_are_the_samplers_own() -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "sigma_min": None, "sigma_max": None}
    np.testing.assert_array_equal(
        make_scheduler("edm_euler", config, 4).sigmas, make_scheduler("edm_euler", {}, 4).sigmas
    )


def test_an_unknown_sampler_or_schedule_lists_the_known() -> None:
    with pytest.raises(UnknownName, match=r"unknown scheduler 'eular'; known: .*euler.*unipc"):
        make_scheduler("eular", {}, 4)
    with pytest.raises(UnknownName, match=r"unknown scheduler \['euler'\]; known: "):
        short_name(["euler"])  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="unknown sigmas 'carras'; known: ays, ays_sdxl, beta, exponential, karras"):
        make_scheduler("euler", {}, 4, sigmas="carras")


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if len(s.sigmas) > 1], ids=lambda sampler: sampler.name)
def test_every_schedule_of_a_sampler_can_be_used(sampler: Sampler) -> None:
    lengths = set()
    for sigmas in sampler.sigmas:
        scheduler = make_scheduler(sampler.name, {}, 10, sigmas=sigmas)
        levels = scheduler.sigmas[:: sampler.calls_per_step]
        assert (np.diff(levels) <= 0).all()
        assert levels[0] > 1.5 * levels[5]
        lengths.add(len(scheduler.timesteps))
    assert len(lengths) == 1


def test_a_schedule_by_name_is_the_flag_of_the_config() -> None:
    for name, flag in (("karras", "use_karras_sigmas"), ("beta", "use_beta_sigmas"), ("lu", "use_lu_lambdas")):
        by_name = make_scheduler("dpmpp_2m", {"use_exponential_sigmas": True}, 10, sigmas=name)
        np.testing.assert_array_equal(by_name.sigmas, make_scheduler("dpmpp_2m", {flag: True}, 10).sigmas)
    own = make_scheduler("dpmpp_2m", {"use_karras_sigmas": True}, 10, sigmas="model")
    np.testing.assert_array_equal(own.sigmas, make_scheduler("dpmpp_2m", {}, 10).sigmas)
    named = make_scheduler("dpmpp_2m_karras", {}, 10)
    np.testing.assert_array_equal(named.sigmas, make_scheduler("dpmpp_2m", {}, 10, sigmas="karras").sigmas)


def test_sigmas_as_a_list_are_taken_as_they_are() -> None:
    sigmas = [14.0, 3.0, 0.5]
    for given in (sigmas, [*sigmas, 0.0]):
        for name in ("euler", "dpmpp_2m", "lms"):
            np.testing.assert_allclose(make_scheduler(name, {}, 3, sigmas=given).sigmas, [*sigmas, 0.0], rtol=1e-12)


@pytest.mark.parametrize("make", SCHEDULERS)
def test_both_names_of_a_sampler_have_one_short_name(make: str) -> None:
    assert SCHEDULERS[short_name(make)] is SCHEDULERS[make]


def test_known_levels() -> None:
    """Of other programs: the tables of arXiv:2404.14507, and ComfyUI's for SD1.5 (sigmas 14.6146 to 0.0292)."""
    ays = make_scheduler("euler", SD15, 10, sigmas="ays").sigmas
    assert ays[[0, 1, 9, 10]].tolist() == pytest.approx([14.615, 6.475, 0.152, 0])
    simple = make_scheduler("euler", SD15, 4, sigmas="simple")
    assert simple.timesteps.tolist() == pytest.approx([999, 749, 499, 249], abs=1e-3)
    uniform = make_scheduler("euler", SD15, 3, sigmas="sgm_uniform")
    assert uniform.timesteps.tolist() == pytest.approx([999, 666, 333], abs=1e-3)
    optimal = make_scheduler("euler", SD15, 3, sigmas="kl_optimal").sigmas
    ends = np.arctan([14.61464, 0.029168])
    assert optimal[:3].tolist() == pytest.approx([14.61464, np.tan(ends.mean()), 0.029168], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "steps", "strength", "start"),
    [("euler", 10, 1.0, 0), ("ddim", 10, 0.75, 3), ("heun", 10, 0.75, 6), ("plms", 3, 0.5, 2)],
)
def test_the_call_at_which_image_to_image_starts(name: str, steps: int, strength: float, start: int) -> None:
    assert start_call(name, steps, strength) == start


@pytest.mark.parametrize("strength", [-0.1, 0.0, 1.1, float("nan")])
def test_a_strength_out_of_range(strength: float) -> None:
    with pytest.raises(UsageError, match=f"strength {strength}; wanted a number above 0, 1 at most"):
        start_call("euler", 10, strength)
