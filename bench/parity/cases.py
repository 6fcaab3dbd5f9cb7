"""What is compared with diffusers: here the samplers that need no noise, with each option that changes its numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

RTOL = 1e-9
# Near its start a flow's signal is 1e-6; a solver of the noise divides by it, and the rounding of both grows as much.
RTOL_SMALL_SIGNAL = 1e-7
STEPS = (1, 2, 3, 5, 10, 25, 50)
SPACINGS = ("leading", "linspace", "trailing")
FLAGS: dict[str, dict[str, Any]] = {
    "model": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "flow": {"use_flow_sigmas": True, "flow_shift": 3.0},
}
SD15: dict[str, Any] = {
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


def _schedule(options: dict[str, Any]) -> str:
    return next((name for name, flags in FLAGS.items() for flag in flags if options.get(flag) is True), "model")


@dataclass(frozen=True)
class Family:
    """A class of diffusers, and what it is compared with: each of `options` with all sigmas, spacings and predictions.

    `extras` are options that are compared as they are. With `one_spacing` only the model's own sigmas depend on the
    spacing. `settings` hold in every case.
    """

    name: str
    sigmas: tuple[str, ...] = ("model", "karras", "exponential", "beta")
    spacings: tuple[str, ...] = SPACINGS
    predictions: tuple[str, ...] = ("epsilon", "v_prediction", "sample")
    options: tuple[dict[str, Any], ...] = ({},)
    extras: tuple[dict[str, Any], ...] = ()
    one_spacing: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    rtol: float = RTOL

    @property
    def title(self) -> str:
        """The class, and its settings."""
        settings = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return f"{self.name} ({settings})" if settings else self.name

    def cases(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """A sigma schedule, and a config."""
        wanted = product(self.sigmas, self.spacings, self.predictions, self.options)
        for sigmas, spacing, prediction, options in wanted:
            if self.one_spacing and sigmas != "model" and spacing != self.spacings[0]:
                continue
            spaced = SD15 | self.settings | {"timestep_spacing": spacing, "prediction_type": prediction}
            yield sigmas, spaced | FLAGS[sigmas] | options
            if sigmas == "flow" and prediction == "epsilon":
                yield sigmas, spaced | FLAGS[sigmas] | options | {"prediction_type": "flow_prediction"}
        for options in self.extras:
            sigmas = _schedule(options)  # a flag that the class does not know changes nothing
            yield sigmas if sigmas in self.sigmas else "model", SD15 | self.settings | options


BETAS: tuple[dict[str, Any], ...] = (
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True},
    {"trained_betas": [0.001 + 0.019 * k / 999 for k in range(1000)]},
    {"steps_offset": 0, "timestep_spacing": "leading"},
)
THRESHOLDING = (
    {"thresholding": True},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 3.0},
)
ENDS: tuple[dict[str, Any], ...] = tuple(
    {"sigma_min": 0.1, "sigma_max": 10.0, flag: True}
    for flag in ("use_karras_sigmas", "use_beta_sigmas", "use_exponential_sigmas")
)
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
SOLVER_FLAGS = ("model", "karras", "exponential", "beta", "flow")
SINGLESTEP: tuple[dict[str, Any], ...] = tuple(
    {"solver_order": order, "solver_type": kind} for order in (1, 2, 3) for kind in ("midpoint", "heun")
)
FLOW_PREDICTION = {"prediction_type": "flow_prediction"}
LEARNED = tuple({"variance_type": kind} for kind in ("learned", "learned_range"))
OF_NOISE = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
CLIPPED = ({"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},)

FAMILIES = (
    Family(
        "DDIMScheduler",
        sigmas=("model",),
        options=({}, {"clip_sample": True}, {"clip_sample": True, "clip_sample_range": 0.4}, *THRESHOLDING),
        extras=(
            *BETAS,
            {"set_alpha_to_one": True, "steps_offset": 0},
            ZERO_SNR,
            {"rescale_betas_zero_snr": True, "timestep_spacing": "leading"},
        ),
    ),
    Family(
        "PNDMScheduler",
        sigmas=("model",),
        predictions=("epsilon", "v_prediction"),
        options=({}, {"skip_prk_steps": False}, {"set_alpha_to_one": True}),
        extras=BETAS,
    ),
    Family("IPNDMScheduler", sigmas=("model",), spacings=("linspace",), predictions=("epsilon",)),
    Family("LMSDiscreteScheduler", extras=(*BETAS, *ENDS)),
    Family(
        "EulerDiscreteScheduler",
        options=({}, {"final_sigmas_type": "sigma_min"}),
        extras=(
            *BETAS,
            *ENDS,
            ZERO_SNR,
            {"timestep_type": "continuous", "prediction_type": "v_prediction"},
            *(
                {"interpolation_type": "log_linear"} | FLAGS[sigmas] | end
                for sigmas in ("model", "karras", "exponential", "beta")
                for end in ({}, {"final_sigmas_type": "sigma_min"}, {"rescale_betas_zero_snr": True})
            ),
        ),
    ),
    Family(
        "HeunDiscreteScheduler",
        options=({}, {"clip_sample": True, "clip_sample_range": 0.4}),
        extras=(*BETAS, *ENDS, {"beta_schedule": "exp"}),
    ),
    Family("KDPM2DiscreteScheduler", predictions=("epsilon", "v_prediction"), extras=(*BETAS, *ENDS)),
    Family(
        "DPMSolverMultistepScheduler",
        one_spacing=True,
        sigmas=(*SOLVER_FLAGS, "lu"),
        options=(*SINGLESTEP, {**OF_NOISE, "solver_order": 3}),
        extras=(
            *BETAS,
            *ENDS,
            ZERO_SNR,
            *THRESHOLDING,
            {**OF_NOISE},
            {**OF_NOISE, "solver_type": "heun"},
            {**OF_NOISE, "thresholding": True, "solver_order": 3},
            {"solver_type": "logrho", "algorithm_type": "deis", "final_sigmas_type": "sigma_min"},
            {"lower_order_final": False, "solver_order": 3},
            {"lower_order_final": False, "final_sigmas_type": "sigma_min", "solver_order": 3},
            {"lower_order_final": False, "final_sigmas_type": "sigma_min", "euler_at_final": True},
            {"use_lu_lambdas": True, "beta_schedule": "squaredcos_cap_v2"},
            {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "thresholding": True},
            FLOW_PREDICTION,
            *LEARNED,
            LEARNED[0] | OF_NOISE,
            *({**CLIPPED[0], "timestep_spacing": spacing} for spacing in SPACINGS),
        ),
    ),
    Family(
        "DPMSolverSinglestepScheduler",
        sigmas=SOLVER_FLAGS,
        spacings=("linspace",),
        options=(
            *SINGLESTEP,
            *(case | {"final_sigmas_type": "sigma_min", "lower_order_final": True} for case in SINGLESTEP[2:]),
            *(case | {"final_sigmas_type": "sigma_min", "lower_order_final": False} for case in SINGLESTEP[2:]),
            *(case | OF_NOISE for case in SINGLESTEP[2:]),
        ),
        extras=(*BETAS[:4], *ENDS, *THRESHOLDING, *CLIPPED, FLOW_PREDICTION, *LEARNED, LEARNED[0] | OF_NOISE),
    ),
    Family(
        "UniPCMultistepScheduler",
        one_spacing=True,
        sigmas=SOLVER_FLAGS,
        options=(
            *({"solver_order": order} for order in (1, 2, 3)),
            {"solver_order": 3, "solver_type": "bh1", "final_sigmas_type": "sigma_min"},
            {"predict_x0": False, "final_sigmas_type": "sigma_min", "solver_order": 3},
        ),
        extras=(
            *BETAS,
            *ENDS,
            ZERO_SNR,
            *THRESHOLDING,
            {"disable_corrector": [0, 1, 5]},
            {"lower_order_final": False, "final_sigmas_type": "sigma_min", "solver_order": 3},
            {"use_flow_sigmas": True, "use_karras_sigmas": True, "prediction_type": "flow_prediction"},
            {"use_flow_sigmas": True, "shift_terminal": 0.1, "prediction_type": "flow_prediction", "flow_shift": 5.0},
            *(
                {"use_flow_sigmas": True, "use_dynamic_shifting": True, "time_shift_type": kind, "mu": 0.7}
                for kind in ("exponential", "linear")
            ),
            {"use_flow_sigmas": True, "final_sigmas_type": "sigma_min"},
            FLOW_PREDICTION,
            {"solver_order": 6},
            {"solver_order": 5, "use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        ),
    ),
    Family(
        "DEISMultistepScheduler",
        one_spacing=True,
        sigmas=SOLVER_FLAGS,
        options=tuple({"solver_order": order} for order in (1, 2, 3)),
        extras=(
            *BETAS,
            *ENDS,
            *THRESHOLDING,
            {"lower_order_final": False, "solver_order": 3},
            {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"},
            FLOW_PREDICTION,
        ),
    ),
    Family(
        "EDMEulerScheduler",
        sigmas=("model",),
        spacings=("linspace",),
        predictions=("epsilon", "v_prediction"),
        options=({}, {"sigma_schedule": "exponential"}, {"final_sigmas_type": "sigma_min"}, {"rho": 5.0}),
        extras=({"sigma_min": 0.3, "sigma_max": 500.0, "sigma_data": 1.0},),
    ),
    Family(
        "EDMDPMSolverMultistepScheduler",
        sigmas=("model",),
        spacings=("linspace",),
        predictions=("epsilon", "v_prediction"),
        options=(
            *SINGLESTEP,
            {"sigma_schedule": "exponential"},
            {"final_sigmas_type": "sigma_min"},
            {"thresholding": True},
            {"euler_at_final": True, "final_sigmas_type": "sigma_min", "lower_order_final": False},
        ),
        extras=({"sigma_min": 0.3, "sigma_max": 500.0, "sigma_data": 1.0},),
    ),
    Family(
        "FlowMatchEulerDiscreteScheduler",
        spacings=("linspace",),
        predictions=("epsilon",),
        options=(
            {},
            {"shift": 3.0},
            {"use_dynamic_shifting": True, "mu": 0.8},
            {"use_dynamic_shifting": True, "mu": 0.8, "time_shift_type": "linear"},
            {"shift_terminal": 0.1, "shift": 2.0},
            {"invert_sigmas": True},
            {"stochastic_sampling": True},
        ),
        extras=tuple(ends | {"sigma_max": 0.9} for ends in ENDS),
    ),
    Family(
        "FlowMatchHeunDiscreteScheduler",
        sigmas=("model",),
        spacings=("linspace",),
        predictions=("epsilon",),
        options=({}, {"shift": 3.0}),
    ),
)
