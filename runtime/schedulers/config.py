"""diffusers' `scheduler_config.json`: which keys each sampler understands, and what they default to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from edgediffusion.engines.errors import UnknownName, UsageError
from edgediffusion.engines.typed import check_types

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
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str = "zero"
    algorithm_type: str = "dpmsolver++"
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    lambda_min_clipped: float = -math.inf
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()
    skip_prk_steps: bool = False
    variance_type: str | None = "fixed_small"
    predictor_order: int = 2
    corrector_order: int = 2
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0
    interpolation_type: str = "linear"
    timestep_type: str = "discrete"
    sigma_data: float = 0.5
    rho: float = 7.0
    # Flows: latents = (1 - sigma) * x0 + sigma * noise
    use_flow_sigmas: bool = False
    flow_shift: float = 1.0
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    time_shift_type: str = "exponential"
    shift_terminal: float | None = None
    invert_sigmas: bool = False
    stochastic_sampling: bool = False
    # Not in diffusers' files, where they are arguments of set_timesteps and step
    sigmas: str | tuple[float, ...] | None = None
    timesteps: tuple[float, ...] | None = None
    mu: float | None = None
    eta: float = 0.3
    strength: float = 1.0


COMMON = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "timestep_spacing",
        "steps_offset",
    }
)
# What a network can be trained to predict, where there is no flow.
OF_DIFFUSION = ("epsilon", "v_prediction", "sample")
# Keys that name a sigma schedule when they are true.
SIGMA_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "lu",
}
# The least and the most of a number; where no formula bounds it, far beyond what anybody trained with.
_RANGES = {
    "num_train_timesteps": (1, 1e6),
    "original_inference_steps": (1, 1e6),
    "steps_offset": (0, 1e6),
    "beta_start": (0, 1),
    "beta_end": (0, 1),
    "trained_betas": (0, 1),
    "dynamic_thresholding_ratio": (0, 1),
    "sigma_min": (0, 1e6),
    "sigma_max": (0, 1e6),
    "sigma_data": (1e-6, 1e6),
    "rho": (0.1, 1e3),
    "flow_shift": (1e-6, 1e6),
    "shift": (1e-6, 1e6),
    "mu": (-100, 100),
    "timestep_scaling": (1e-6, 1e6),
    "clip_sample_range": (1e-6, 1e6),
    "sample_max_value": (1e-6, 1e6),
}
_OWN_WHERE_NULL = {"sigma_min", "sigma_max"}  # Euler's configs have them so, and EDM's samplers bounds of their own
_FIELDS = {entry.name for entry in dataclasses.fields(SchedulerConfig)}
# Keys that change no number here, or that only other samplers of diffusers read; its `from_config` drops them.
_ELSEWHERE = frozenset(
    {
        "base_image_seq_len",
        "base_shift",
        "max_image_seq_len",
        "max_shift",
        "noise_sampler_seed",
        "sigma_schedule",
        "solver_p",
        *SIGMA_FLAGS,
    }
)


@dataclass(frozen=True, kw_only=True)
class ConfigReader:
    """The keys of one sampler: those it `reads`, and those of which it `accepts` some values only.

    `sigmas` are the sigma schedules that it can use; the first is what it does unless told. Of `lists`, "sigmas"
    and "timesteps", it takes those named. `renamed` are values of other samplers that diffusers takes for this one's.
    """

    reads: frozenset[str]
    accepts: Mapping[str, tuple[Any, ...]]
    sigmas: tuple[str, ...] = ("model",)
    lists: tuple[str, ...] = ()
    renamed: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    defaults: SchedulerConfig = SchedulerConfig()

    def __call__(self, config: Mapping[str, Any]) -> SchedulerConfig:
        """Read `config` as diffusers' `Scheduler.from_config` does, whichever class it was written for.

        Keys of other samplers are passed over, and so are the values that `_use_default_values` calls defaults.

        Raises:
            UsageError: a key would change the numbers in a way that is not understood, or has a value of another type.
        """
        try:
            read = self._read(config)
            check_types(read, "scheduler_config")
        except TypeError as error:
            raise UsageError(f"scheduler config: {error}; wanted the types that diffusers writes") from None
        for key, (least, most) in _RANGES.items():
            value = getattr(read, key)
            for number in value if isinstance(value, Sequence) else (value,):
                if number is not None and not least <= number <= most:
                    raise UsageError(f"scheduler config: {key} {number}; wanted {least:g} to {most:g}")
        return read

    def _read(self, config: Mapping[str, Any]) -> SchedulerConfig:
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
        read = {
            key: value
            for key, value in given.items()
            if key in self.reads & _FIELDS and not (value is None and key in _OWN_WHERE_NULL)
        }
        for key, names in self.renamed.items():
            if key in read:
                read[key] = names.get(read[key], read[key])
        return replace(self.defaults, **read, **self._schedule(given))

    def _schedule(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The fields `sigmas` and `timesteps`."""
        flags = [name for key, name in SIGMA_FLAGS.items() if key in self.reads and given.get(key)]
        if len(flags) > 1:
            raise UsageError(f"scheduler config: more than one sigma schedule: {', '.join(flags)}; wanted one")
        sigmas, timesteps = given.get("sigmas"), given.get("timesteps")
        if timesteps is not None and (sigmas is not None or flags):
            raise UsageError("timesteps and a sigma schedule; wanted one of them")
        for kind, values in (("sigmas", sigmas), ("timesteps", timesteps)):
            if values is not None and not isinstance(values, str) and kind not in self.lists:
                instead = f"give a list of {self.lists[0]}" if self.lists else "take another, such as euler"
                raise UsageError(f"a list of {kind} is not supported by this sampler; {instead}")
        if isinstance(sigmas, str) and sigmas not in self.sigmas:
            known = ", ".join(self.sigmas)
            raise UsageError(f"sigmas {sigmas!r} cannot be used by this sampler; it takes: {known}")
        if sigmas is None:
            sigmas = flags[0] if flags else self.sigmas[0]
        return {
            "sigmas": sigmas if isinstance(sigmas, str) else _floats("sigmas", sigmas),
            "timesteps": None if timesteps is None else _floats("timesteps", timesteps),
        }


def _floats(kind: str, values: Iterable[Any]) -> tuple[float, ...]:
    try:
        return tuple(map(float, values))
    except (OverflowError, TypeError, ValueError):
        raise UsageError(f"{kind} {values!r}; wanted numbers") from None


def pick(key: str, name: str, table: Mapping[str, T]) -> T:
    """The entry of `table`, or `UnknownName` with the known names."""
    if not isinstance(name, str) or name not in table:  # configs are others' JSON
        raise UnknownName(key, name, table)
    return table[name]


def check_eta(config: SchedulerConfig) -> None:
    """Of samplers that draw as much noise as it says.

    Raises:
        UsageError: it is not in 0 to 1.
    """
    if not 0 <= config.eta <= 1:
        raise UsageError(f"scheduler config: eta {config.eta}; wanted 0 to 1")


def check_strength(strength: float, name: str = "strength") -> None:
    """Of a start from a picture; the error calls it `name`.

    Raises:
        UsageError: it is not above 0 and up to 1.
    """
    if not 0 < strength <= 1:
        raise UsageError(f"{name} {strength}; wanted a number above 0, 1 at most")
