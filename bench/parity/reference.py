"""One run by diffusers and one by ours, with a fixed function in place of the network, in float64 or float32.

Samplers that draw noise are given the same on both sides.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray

from edgediffusion.runtime.schedulers import SCHEDULERS

from .cases import RTOL_SMALL_SIGNAL, STEPS, Family

Latents = NDArray[Any]
Path = list[tuple[float, Latents]]
SHAPE = (2, 3, 2, 2)  # diffusers' solvers cut a learned variance off behind three channels


class Double:
    """A module in which float32 is float64."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return self._module.float64 if name == "float32" else getattr(self._module, name)


@contextmanager
def double(name: str) -> Iterator[None]:
    """diffusers' class `name` computes in float64."""
    module = importlib.import_module(getattr(diffusers, name).__module__)
    kept = {key: vars(module)[key] for key in ("torch", "np") if key in vars(module)}
    for key, value in kept.items():
        setattr(module, key, Double(value))
    torch.set_default_dtype(torch.float64)
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        for key, value in kept.items():
            setattr(module, key, value)
        torch.set_default_dtype(torch.float32)
        diffusers_logging.set_verbosity(verbosity)


def network(sample: Latents, timestep: float) -> Latents:
    """A fixed nonlinear function in place of the UNet, which gets its timestep in float32."""
    result: Latents = np.tanh(1.3 * sample + math.cos(np.float32(timestep) / 150)) - 0.2 * sample
    return result


def answer(config: Mapping[str, Any], sample: Latents, timestep: float) -> Latents:
    """What the network says; where it learned the variance too, that in [0, 1) behind it."""
    prediction = network(sample, timestep)
    if config.get("variance_type") not in ("learned", "learned_range"):
        return prediction
    return np.concatenate([prediction, prediction**2 / (1 + prediction**2)], axis=1)


def normal(dtype: type[np.floating[Any]], seed: int = 0) -> Latents:
    """Standard normal noise."""
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(dtype)


class Stream:
    """Noise for a run; diffusers takes it in place of its `randn_tensor` and of its Brownian tree."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._random = np.random.default_rng(1)
        self._dtype = dtype
        self._brownian: list[tuple[float, float, torch.Tensor]] = []

    def normal(self) -> Latents:
        """The next standard normal noise."""
        return self._random.standard_normal(SHAPE).astype(self._dtype)

    def randn_tensor(self, shape: Any, **_: Any) -> torch.Tensor:
        """In place of `diffusers.utils.torch_utils.randn_tensor`."""
        assert tuple(shape) == SHAPE
        return torch.from_numpy(self.normal())

    def between(self, sigma: Any, next_sigma: Any) -> torch.Tensor:
        """Normalised increments of one Brownian motion, asked for as DPMSolverSDEScheduler does: half, then whole."""
        start, end = float(sigma), float(next_sigma)
        if not self._brownian or self._brownian[-1][0] != start:
            self._brownian.append((start, end, torch.from_numpy(self.normal())))
            return self._brownian[-1][2]
        _, middle, first = self._brownian[-1]
        whole = math.sqrt(start - middle) * first + math.sqrt(middle - end) * torch.from_numpy(self.normal())
        return whole / math.sqrt(start - end)

    @contextmanager
    def drawn_by(self, scheduler: Any) -> Iterator[None]:
        """The module of `scheduler` draws from here."""
        module = importlib.import_module(type(scheduler).__module__)
        substitutes = {"randn_tensor": self.randn_tensor, "BrownianTreeNoiseSampler": lambda *_: self.between}
        kept = {name: getattr(module, name) for name in substitutes if hasattr(module, name)}
        for name in kept:
            setattr(module, name, substitutes[name])
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(module, name, value)


class Refused(Exception):
    """diffusers does not accept the case."""


def their_scheduler(name: str, config: dict[str, Any]) -> Any:
    """A scheduler of diffusers, to be used for one number of steps after the other: some take long to make."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, name).from_config(config)


def their_path(scheduler: Any, steps: int, noise: Latents, *, mu: float | None = None, start: int = 0) -> Path:
    """Timestep and latents after each call of the network.

    Raises:
        Refused: diffusers fails, or computes no numbers.
    """
    try:
        with warnings.catch_warnings(), Stream(noise.dtype).drawn_by(scheduler):
            warnings.simplefilter("ignore")  # diffusers' own divisions by zero and deprecations
            path = list(_their_calls(scheduler, steps, noise, mu, start))
    except Exception as error:
        raise Refused(repr(error)) from error
    if not all(np.isfinite(latents).all() for _, latents in path):
        raise Refused("not finite")
    return path


def _their_calls(scheduler: Any, steps: int, noise: Latents, mu: float | None, start: int) -> Iterator[Any]:
    scheduler.set_timesteps(steps, **({} if mu is None else {"mu": mu}))
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    latents = torch.from_numpy(noise) * getattr(scheduler, "init_noise_sigma", 1.0)
    eta = {"eta": scheduler.config.eta} if "eta" in scheduler.config else {}  # with diffusers an argument of the step
    for t in scheduler.timesteps[start:]:
        scale = getattr(scheduler, "scale_model_input", lambda sample, _: sample)
        output = torch.from_numpy(answer(scheduler.config, scale(latents, t).numpy(), float(t)))
        latents = scheduler.step(output, t, latents, return_dict=False, **eta)[0]
        yield float(t), latents.numpy()


def our_path(name: str, config: dict[str, Any], steps: int, noise: Latents, start: int = 0) -> Path:
    """The same by our sampler."""
    scheduler = SCHEDULERS[name](config, steps)
    latents: Latents = noise * scheduler.init_noise_sigma
    history: tuple[Latents, ...] = ()
    stream = Stream(noise.dtype)
    path = []
    for i, t in list(enumerate(scheduler.timesteps))[start:]:
        output = answer(config, scheduler.scale_model_input(latents, i), float(t))
        fresh = stream.normal() if scheduler.draws_noise(i) else None
        latents, history = scheduler.step(output, i, latents, history, fresh)
        path.append((float(t), latents))
    return path


@dataclass(frozen=True)
class Comparison:
    """The largest relative error of a run, and in words where it is not as it should be."""

    error: float
    failure: str | None


def compare(ours: Path, theirs: Path, rtol: float) -> Comparison:
    """Step by step: timesteps equal, and latents within `rtol` of their largest value."""
    if len(ours) != len(theirs):
        return Comparison(math.inf, f"{len(ours)} calls, diffusers' {len(theirs)}")
    largest = 0.0
    for step, ((our_t, a), (their_t, b)) in enumerate(zip(ours, theirs, strict=True)):
        if abs(our_t - their_t) > max(1e-4, 10 * rtol):
            return Comparison(math.inf, f"call {step}: timestep {our_t}, diffusers' {their_t}")
        error = float(np.abs(a.astype(np.float64) - b).max() / (np.abs(b).max() or 1))
        largest = max(largest, error)
        if not error <= rtol:
            return Comparison(error, f"call {step} (timestep {their_t}): relative error {error:.3g} > {rtol:.3g}")
    return Comparison(largest, None)


def parity(family: Family, sigmas: str) -> Iterator[tuple[str, Comparison]]:
    """Every case of the family with one sigma schedule that diffusers accepts: in words, and how it compares."""
    noise = normal(np.float64)
    with double(family.name):
        for schedule, config in family.cases():
            if schedule != sigmas:
                continue
            small_signal = bool(config.get("use_flow_sigmas")) and not config.get("predict_x0", True)
            scheduler = their_scheduler(family.name, config)
            for steps in STEPS:
                if family.name == "DPMSolverSinglestepScheduler":  # its set_timesteps changes its config
                    scheduler = their_scheduler(family.name, config)
                try:
                    theirs = their_path(scheduler, steps, noise, mu=config.get("mu"))
                except Refused:
                    continue
                ours = our_path(family.name, config, steps, noise)
                rtol = RTOL_SMALL_SIGNAL if small_signal else family.rtol
                yield f"{steps} steps, {config}", compare(ours, theirs, rtol)
