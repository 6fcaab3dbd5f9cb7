"""diffusers' `scheduler_config.json`: which keys each sampler understands, and what they default to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from edgediffusion.engines.errors import UnknownName, UsageError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """What decides the numbers of a sampler, in diffusers' words and with the defaults most of its classes share."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    use_karras_sigmas: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float = -math.inf


COMMON = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
        "prediction_type",
        "timestep_spacing",
        "steps_offset",
    }
)
_FIELDS = {field.name for field in dataclasses.fields(SchedulerConfig)}
# Keys that only other samplers of diffusers read; its `from_config` drops them.
_ELSEWHERE = frozenset(
    {
        "algorithm_type",
        "disable_corrector",
        "dynamic_thresholding_ratio",
        "flow_shift",
        "interpolation_type",
        "original_inference_steps",
        "predict_x0",
        "rho",
        "sample_max_value",
        "shift_terminal",
        "sigma_data",
        "sigma_schedule",
        "skip_prk_steps",
        "solver_p",
        "thresholding",
        "time_shift_type",
        "timestep_scaling",
        "timestep_type",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_flow_sigmas",
        "use_lu_lambdas",
        "variance_type",
    }
)


@dataclass(frozen=True, kw_only=True)
class ConfigReader:
    """The keys of one sampler: those it `reads`, and those of which it `accepts` some values only."""

    reads: frozenset[str]
    accepts: Mapping[str, tuple[Any, ...]]
    defaults: SchedulerConfig = SchedulerConfig()

    def __call__(self, config: Mapping[str, Any]) -> SchedulerConfig:
        """Read `config` as diffusers' `Scheduler.from_config` does, whichever class it was written for.

        Keys of other samplers are passed over, and so are the values that `_use_default_values` calls defaults.

        Raises:
            UsageError: a key would change the numbers in a way that is not understood.
        """
        defaulted = config.get("_use_default_values", ())
        given = {key: value for key, value in config.items() if not key.startswith("_") and key not in defaulted}
        for key, value in given.items():
            if key in self.accepts and value not in self.accepts[key]:
                known = ", ".join(map(repr, self.accepts[key]))
                raise UsageError(f"scheduler config: {key} {value!r} is not supported here; known: {known}")
            if key not in _FIELDS | _ELSEWHERE | self.accepts.keys() and value not in (None, False):
                raise UsageError(
                    f"scheduler config: key {key!r} ({value!r}) is not known and may change the picture; "
                    f"remove it, or pip install --upgrade edgediffusion"
                )
        return replace(self.defaults, **{key: value for key, value in given.items() if key in self.reads})


def pick(key: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of `table`, or `UnknownName` with the known names."""
    if name not in table:
        raise UnknownName(key, name, table)
    return table[name]
