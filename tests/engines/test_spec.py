from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from edgediffusion.engines.errors import GraphMismatch
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec

SPEC = GraphSpec(
    "unet",
    (TensorSpec("sample", "float32", ("batch", 4, "height")), TensorSpec("timestep", "int64", ("batch",))),
    (TensorSpec("out_sample", "float32", ("batch", 4)),),
)
SAMPLE = np.zeros((2, 4, 8), np.float32)
TIMESTEP = np.zeros(2, np.int64)


def test_fitting_feeds_pass() -> None:
    SPEC.check_feeds({"sample": SAMPLE, "timestep": TIMESTEP})
    SPEC.check_feeds({"timestep": TIMESTEP}, partial=True)
    SPEC.check_outputs({"out_sample": SAMPLE[..., 0]})


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"sample": SAMPLE}, "unet: missing input timestep"),
        ({"sample": SAMPLE, "timestep": TIMESTEP, "t": TIMESTEP}, "unet: unknown input t; known: sample, timestep"),
        (
            {"sample": SAMPLE.astype(np.float16), "timestep": TIMESTEP},
            r"unet\.sample: dtype float16, expected float32; convert with \.astype\('float32'\)",
        ),
        (
            {"sample": SAMPLE[:, :3], "timestep": TIMESTEP},
            r"unet\.sample: shape \(2, 3, 8\), expected \(batch=2, 4, height=8\)",
        ),
        ({"sample": SAMPLE[0], "timestep": TIMESTEP}, r"unet\.sample: shape \(4, 8\), expected \("),
        ({"sample": SAMPLE, "timestep": TIMESTEP[:1]}, r"unet\.timestep: shape \(1,\), expected \(batch=2\)"),
    ],
)
def test_feeds_that_do_not_fit(feeds: Mapping[str, Array], message: str) -> None:
    with pytest.raises(GraphMismatch, match=message):
        SPEC.check_feeds(feeds)


def test_one_size_of_a_graph() -> None:
    """What is made from a size is rounded up, as the convolutions of a UNet do it."""
    spec = GraphSpec(
        "unet",
        (TensorSpec("sample", "float32", ("batch", 4, "height/8", "8*width")),),
        (TensorSpec("out", "int64", ("width/2",)),),
    )
    fixed = spec.fixed({"batch": 2, "height": 64, "width": 17})
    assert [tensor.shape for tensor in (*fixed.inputs, *fixed.outputs)] == [(2, 4, 8, 136), (9,)]
    assert fixed.fixed({}) == fixed
    with pytest.raises(KeyError, match="height"):
        spec.fixed({"batch": 2, "width": 17})


def test_partial_feeds_are_checked_too() -> None:
    with pytest.raises(GraphMismatch, match="unet: unknown input t; known"):
        SPEC.check_feeds({"t": TIMESTEP}, partial=True)
    with pytest.raises(GraphMismatch, match=r"unet\.sample: shape"):
        SPEC.check_feeds({"sample": SAMPLE[0]}, partial=True)


def test_outputs_that_do_not_fit() -> None:
    with pytest.raises(GraphMismatch, match="unet: missing output out_sample"):
        SPEC.check_outputs({})
    with pytest.raises(GraphMismatch, match=r"unet\.out_sample: dtype int64"):
        SPEC.check_outputs({"out_sample": TIMESTEP})
