"""The statistics."""

from __future__ import annotations

import operator

from edgediffusion.bench.figures import Figure, paired


def test_summary_keeps_every_run_in_its_order() -> None:
    figure = Figure(name="generate", unit="s", values=(4.0, 1.0, 2.0, 8.0))
    assert figure.to_json() == {
        "name": "generate",
        "unit": "s",
        "median": 3.0,
        "min": 1.0,
        "max": 8.0,
        "runs": [4.0, 1.0, 2.0, 8.0],
    }


def test_ratios_are_run_by_run() -> None:
    """The median of the ratios, here 5, is not the ratio of the medians, 3."""
    figure = paired("ratio", "x", operator.truediv, [10.0, 30.0, 30.0], [10.0, 5.0, 6.0])
    assert figure == Figure(name="ratio", unit="x", values=(1.0, 6.0, 5.0))
    assert figure.median == 5.0
