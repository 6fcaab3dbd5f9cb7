"""What is compared with diffusers: samplers that draw noise, the same noise on both sides."""

from __future__ import annotations

from typing import Any

from .cases import (
    BETAS,
    CLIPPED,
    ENDS,
    FAMILIES,
    FLOW_PREDICTION,
    LEARNED,
    SINGLESTEP,
    SOLVER_FLAGS,
    THRESHOLDING,
    ZERO_SNR,
    Family,
)

DERIVATIVES = ("epsilon", "v_prediction")
V_ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
CLIP: tuple[dict[str, Any], ...] = (
    {"clip_sample": True},
    {"clip_sample": True, "clip_sample_range": 0.4, "prediction_type": "v_prediction"},
)

STOCHASTIC = (
    Family(
        "DDIMScheduler",
        settings={"eta": 0.7},
        sigmas=("model",),
        extras=(*BETAS, ZERO_SNR, *CLIP, *THRESHOLDING, {"eta": 1.0}, {"set_alpha_to_one": True}),
    ),
    Family(
        "DDPMScheduler",
        sigmas=("model",),
        extras=(
            *BETAS,
            ZERO_SNR,
            *CLIP,
            *THRESHOLDING,
            *LEARNED,
            LEARNED[1] | CLIP[1],
            {"beta_schedule": "laplace"},
            {"beta_schedule": "sigmoid"},
            {"variance_type": "fixed_small_log"},
            {"variance_type": "fixed_large"},
        ),
    ),
    Family(
        "EulerAncestralDiscreteScheduler", sigmas=("model",), predictions=DERIVATIVES, extras=(*BETAS, ZERO_SNR, *ENDS)
    ),
    Family(
        "KDPM2AncestralDiscreteScheduler",
        predictions=DERIVATIVES,
        extras=(*BETAS, *ENDS),
        # Where a level is thousands of times the next, the way down is a difference of two almost equal squares.
        rtol=1e-7,
    ),
    Family("DPMSolverSDEScheduler", predictions=DERIVATIVES, extras=(*BETAS, *ENDS)),
    Family(
        "LCMScheduler",
        sigmas=("model",),
        extras=(
            *BETAS,
            V_ZERO_SNR,
            *CLIP,
            *THRESHOLDING,
            {"original_inference_steps": 100},
            {"timestep_scaling": 1.0},
        ),
        # diffusers has the scalings at its boundary in float32, from whole timesteps.
        rtol=1e-6,
    ),
    Family(
        "TCDScheduler",
        sigmas=("model",),
        extras=(
            *BETAS,
            V_ZERO_SNR,
            {"original_inference_steps": 100},
            *({"eta": eta} for eta in (0.0, 0.7, 1.0)),
        ),
    ),
    Family(
        "SASolverScheduler",
        sigmas=SOLVER_FLAGS,
        extras=(
            *BETAS,
            *ENDS,
            *THRESHOLDING,
            *CLIPPED,
            *({"predictor_order": p, "corrector_order": c} for p, c in ((1, 1), (3, 4), (4, 3), (1, 3), (3, 1))),
            {"algorithm_type": "noise_prediction"},
            {"algorithm_type": "noise_prediction", "predictor_order": 3, "corrector_order": 3},
            {"lower_order_final": False, "predictor_order": 3, "corrector_order": 3},
            FLOW_PREDICTION,
        ),
    ),
    Family(
        "DPMSolverMultistepScheduler",
        settings={"algorithm_type": "sde-dpmsolver++"},
        sigmas=(*SOLVER_FLAGS, "lu"),
        extras=(
            *SINGLESTEP,
            *BETAS,
            *ENDS,
            *THRESHOLDING,
            *LEARNED,
            {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
            {"final_sigmas_type": "sigma_min", "lower_order_final": False},
            FLOW_PREDICTION,
        ),
    ),
)
ALL = (*FAMILIES, *STOCHASTIC)
