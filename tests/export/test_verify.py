"""The parity check, on graphs that are Python functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgediffusion.engines.errors import ExportError
from edgediffusion.engines.fake import FakeEngine
from edgediffusion.engines.spec import GraphSpec, TensorSpec
from edgediffusion.export.families import Sample
from edgediffusion.export.verify import TOLERANCE, check_parity, references, relative_error

SPEC = GraphSpec(
    "double",
    (TensorSpec("x", "float32", ("batch",)),),
    (TensorSpec("y", "float32", ("batch",)), TensorSpec("z", "float32", ("batch",))),
)
SAMPLES = [
    Sample("large", {"x": np.array([30, 40, 50], np.float32)}),
    Sample("small", {"x": np.array([1, 2], np.float32)}),
]


class Double(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * x, x - x


def engine(error: float) -> FakeEngine:
    return FakeEngine(SPEC, lambda feeds: {"y": 2 * feeds["x"] + np.float32(error), "z": 0 * feeds["x"]})


def test_references_are_named_as_in_the_spec() -> None:
    large, small = references(Double(), SPEC, SAMPLES)
    assert small["y"].tolist() == [2, 4]
    assert large["y"].tolist() == [60, 80, 100]
    assert large["z"].tolist() == [0, 0, 0]


def test_parity_is_that_of_the_worst_sample() -> None:
    wanted = references(Double(), SPEC, SAMPLES)
    parity = check_parity(engine(TOLERANCE), SAMPLES, wanted)
    assert parity.worst == "small"
    assert parity.error == pytest.approx(TOLERANCE / 4, rel=0.01)
    assert check_parity(engine(0), SAMPLES, wanted).error == 0


@pytest.mark.parametrize(("error", "said"), [(6e-4, "0.00015"), (1.0, "0.25"), (math.nan, "inf"), (math.inf, "inf")])
def test_a_graph_that_is_off_is_refused(error: float, said: str) -> None:
    wanted = references(Double(), SPEC, SAMPLES)
    message = rf"double: off by {said} of torch's largest output \(\w+\), tolerance 0.0001; bundle not written"
    with pytest.raises(ExportError, match=message):
        check_parity(engine(error), SAMPLES, wanted)


def test_nan_on_both_sides_is_no_agreement() -> None:
    nan = {"y": np.array([1, math.nan], np.float32)}
    assert relative_error(nan, nan) == math.inf


def test_error_is_relative_to_the_largest_value_unless_that_is_zero() -> None:
    want = {"y": np.array([0.0, -4.0])}
    assert relative_error({"y": np.array([1.0, -4.0])}, want) == 0.25
    assert relative_error({"y": np.array([0.5])}, {"y": np.array([0.0])}) == 0.5


def test_the_reference_is_computed_without_gradients() -> None:
    layer = nn.Linear(2, 2)
    spec = GraphSpec("linear", (TensorSpec("input", "float32", (2,)),), (TensorSpec("y", "float32", (2,)),))
    (outputs,) = references(layer, spec, [Sample("", {"input": np.array([1, 2], np.float32)})])
    assert np.array_equal(outputs["y"], layer(torch.tensor([1.0, 2.0])).detach().numpy())
