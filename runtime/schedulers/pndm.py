"""Pseudo linear multistep (PLMS) and Runge-Kutta: Liu et al., Pseudo Numerical Methods, arXiv:2202.09778."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgediffusion.engines.errors import UsageError

from ..arrays import F64
from .base import LinearSampler, Move, Prediction, pairs, unchecked_x0_table
from .config import COMMON, ConfigReader, SchedulerConfig
from .schedule import alphas_cumprod, spaced_timesteps

read_config = ConfigReader(
    reads=COMMON | {"skip_prk_steps", "set_alpha_to_one"},
    accepts={"prediction_type": ("epsilon", "v_prediction")},
    defaults=SchedulerConfig(timestep_spacing="leading", set_alpha_to_one=False),
)
# Adams-Bashforth on even steps: weights of the outputs, the last one first.
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
# Eq. 11 with weights of outputs: latents are carried from `timestep` to `to`, shape (1 + outputs,).
Carry = Callable[[int, int, tuple[float, ...]], tuple[float, ...]]


def pndm(config: Mapping[str, Any], num_inference_steps: int) -> LinearSampler:
    """The sampler for a `scheduler_config.json` of any class. Latents have alpha^2 + sigma^2 = 1.

    With skip_prk_steps (PLMS) n + 1 calls, for n > 1, else n + 9; a run of those starts at its first call.

    Raises:
        UsageError: the config says what is not understood, or has not so many steps.
    """
    c = read_config(config)
    power = alphas_cumprod(c)
    spaced = spaced_timesteps(c, num_inference_steps).round().astype(int)
    stride = c.num_train_timesteps // num_inference_steps
    carry = _carry(c, power)
    if c.skip_prk_steps:
        timesteps = np.concatenate([spaced[:1], spaced[1:2], spaced[1:]])
        _check(timesteps, np.append(timesteps, timesteps[1:2] + stride), len(power), num_inference_steps)
        moves = tuple(_plms_moves(carry, t, stride, len(power)) for t in timesteps.tolist())
    else:
        if num_inference_steps < 4:
            raise UsageError(f"num_inference_steps {num_inference_steps}; pndm without skip_prk_steps wants 4 or more")
        halves = (np.repeat(spaced[:4], 2) + np.tile([stride // 2, 0], 4))[1:]
        runge_kutta = np.repeat(halves, 2)[1:-1]
        timesteps = np.concatenate([runge_kutta, spaced[3:]])
        _check(timesteps, timesteps, len(power), num_inference_steps)
        moves = (
            *((_prk_move(carry, runge_kutta.tolist(), k, stride),) for k in range(12)),
            *((_plms_move(carry, t, t - stride, 4, (1, 2, 3)),) for t in spaced[3:].tolist()),
        )
    powers = power[timesteps]
    alphas, sigmas = np.sqrt(powers), np.sqrt(1 - powers)
    final = 1.0 if c.set_alpha_to_one or timesteps[-1] - stride >= 0 else power[0]
    if timesteps[-1] - stride >= 0:
        final = power[timesteps[-1] - stride]
    return LinearSampler(
        timesteps=timesteps.astype(np.float32),
        sigmas=np.append(sigmas / alphas, np.sqrt((1 - final) / final)),
        init_noise_sigma=1.0,
        noising=pairs(alphas, sigmas),
        prediction=Prediction(
            pairs(np.zeros_like(alphas), np.ones_like(alphas)), to_x0=unchecked_x0_table(c, alphas, sigmas)
        ),
        moves=moves,
    )


def _check(timesteps: Any, used: Any, stop: int, num_inference_steps: int) -> None:
    if used.max() >= stop:
        raise UsageError(
            f"num_inference_steps {num_inference_steps} needs timestep {used.max()}, beyond the {stop} "
            "of the training; use another timestep_spacing or number of steps"
        )


def _carry(config: SchedulerConfig, power: F64) -> Carry:
    final = 1.0 if config.set_alpha_to_one else float(power[0])

    def carry(timestep: int, to: int, outputs: tuple[float, ...]) -> tuple[float, ...]:
        p, q = float(power[timestep]), float(power[to]) if to >= 0 else final
        of_latents = (q / p) ** 0.5
        of_noise = -(q - p) / (p * (1 - q) ** 0.5 + (p * (1 - p) * q) ** 0.5)
        if config.prediction_type == "v_prediction":
            # noise = alpha * v + sigma * latents; arXiv:2202.00512, appendix D
            of_latents, of_noise = of_latents + of_noise * (1 - p) ** 0.5, of_noise * p**0.5
        return (of_latents, *(of_noise * weight for weight in outputs))

    return carry


def _plms_moves(carry: Carry, timestep: int, stride: int, stop: int) -> tuple[Move, ...]:
    """The history's length tells how far a run is: 0, 2 (the first step is made again), 1, 3, 4."""
    first = Move(carry(timestep, timestep - stride, (1.0,)), (0, 1))
    again = first
    if timestep + stride < stop:
        of_latents, *outputs = carry(timestep + stride, timestep, (1 / 2, 1 / 2))
        again = Move((0.0, outputs[0], of_latents, outputs[1]), (3,))
    third = _plms_move(carry, timestep, timestep - stride, 2, (1, 2, 2))
    fourth = _plms_move(carry, timestep, timestep - stride, 3, (1, 2, 3, 3))
    full = _plms_move(carry, timestep, timestep - stride, 4, (1, 2, 3, 3))
    return (first, third, again, fourth, full)


def _plms_move(carry: Carry, timestep: int, to: int, order: int, keep: tuple[int, ...]) -> Move:
    return Move(carry(timestep, to, ADAMS_BASHFORTH[order - 1]), keep)


def _prk_move(carry: Carry, timesteps: list[int], k: int, stride: int) -> Move:
    """Call `k` of three Runge-Kutta steps of four calls each; columns: latents, output, where it began, outputs."""
    timestep = timesteps[k // 4 * 4]
    to = timesteps[k] - (0 if k % 2 else stride // 2)
    known = k // 4
    if k % 4 == 0:
        return Move(carry(timestep, to, (1.0,)), (0, 1, *range(2, 2 + known)))
    if k % 4 < 3:
        of_latents, of_output = carry(timestep, to, (1.0,))
        earlier = range(3, 3 + k % 4 + known)
        return Move((0.0, of_output, of_latents), (2, 1, *earlier))
    of_latents, *outputs = carry(timestep, to, (1 / 6, 1 / 3, 1 / 3, 1 / 6))
    return Move((0.0, outputs[0], of_latents, *outputs[1:]), tuple(range(5, 6 + known)))
