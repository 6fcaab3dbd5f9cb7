"""Each value of each option that the signatures of diffusers' classes list: what they accept, we have."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import pytest

from edgediffusion.bench.parity.cases import SD15
from edgediffusion.bench.parity.reference import (
    Refused,
    compare,
    double,
    normal,
    our_path,
    their_path,
    their_scheduler,
)
from edgediffusion.runtime.schedulers import SAMPLERS

CLASSES = tuple(sampler.diffusers for sampler in SAMPLERS if sampler.diffusers is not None)
STEPS = 5
# What is looked for is a value that is passed over; LCM's scalings are float32 in diffusers.
RTOL = 1e-6
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def options(name: str) -> Iterator[dict[str, Any]]:
    """One option at a time, as the model has it or on a flow: each value of a Literal, and what a flag is not."""
    parameters = inspect.signature(getattr(diffusers, name).__init__, eval_str=True).parameters
    for base in ({}, FLOW) if "use_flow_sigmas" in parameters else ({},):
        yield base
        for key, parameter in parameters.items():
            values = [value for kind in _kinds(parameter.annotation) for value in typing.get_args(kind)]
            if isinstance(parameter.default, bool):
                values = [not parameter.default]
            for value in values:
                mu = {"mu": 0.8} if key == "use_dynamic_shifting" else {}
                yield base | {key: value} | mu


def _kinds(annotation: Any) -> list[Any]:
    """The Literals in it."""
    return [kind for kind in (annotation, *typing.get_args(annotation)) if typing.get_origin(kind) is typing.Literal]


@pytest.mark.parametrize("name", CLASSES)
def test_what_diffusers_accepts_we_have(name: str) -> None:
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    pytest.importorskip("scipy", reason="diffusers takes the beta distribution from it")
    noise, accepted = normal(np.float64), 0
    with double(name):
        for chosen in options(name):
            config = SD15 | chosen
            try:
                scheduler = their_scheduler(name, config)
                theirs = their_path(scheduler, STEPS, noise, mu=config.get("mu"))
            except (Refused, NotImplementedError, ValueError):
                continue
            failure = compare(our_path(name, config, STEPS, noise), theirs, RTOL).failure
            assert failure is None, f"{chosen}: {failure}"
            accepted += 1
    assert accepted > 0
