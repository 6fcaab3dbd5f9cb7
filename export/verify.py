"""Does the graph compute what torch computes?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from edgediffusion.engines.base import Engine
from edgediffusion.engines.errors import ExportError
from edgediffusion.engines.spec import Array, GraphSpec
from edgediffusion.runtime.golden import relative_errors
from edgediffusion.runtime.manifest import Parity

from .families.base import Sample

# Both sides compute in float32 and differ in the order of their sums only. Right graphs of tiny to full-size networks
# stay within 1e-6 to 1e-5 of the largest output; a wrong operator, mask or weight is at 1e-2 and beyond.
TOLERANCE = 1e-4


def references(module: nn.Module, spec: GraphSpec, samples: Sequence[Sample]) -> list[dict[str, Array]]:
    """What torch computes from each sample."""
    results = []
    with torch.inference_mode():
        for sample in samples:
            output = module(**{tensor.name: torch.from_numpy(sample.feeds[tensor.name]) for tensor in spec.inputs})
            values = output if isinstance(output, tuple) else (output,)
            results.append({t.name: value.numpy() for t, value in zip(spec.outputs, values, strict=True)})
    return results


def check_parity(
    engine: Engine, samples: Sequence[Sample], wanted: Sequence[dict[str, Array]], tolerance: float = TOLERANCE
) -> Parity:
    """Run each sample and compare with what torch gave.

    Raises:
        ExportError: one of them misses `tolerance`, by default that of float32.
    """
    parity = measure(engine, samples, wanted, tolerance)
    if not parity.error <= parity.tolerance:
        raise ExportError(
            f"{engine.spec.name}: off by {parity.error:.2g} of torch's largest output ({parity.worst}), "
            f"tolerance {parity.tolerance:.2g}; bundle not written"
        )
    return parity


def measure(engine: Engine, samples: Sequence[Sample], wanted: Sequence[dict[str, Array]], tolerance: float) -> Parity:
    """The largest error among the samples, for the caller to hold against `tolerance`."""
    errors = [relative_error(engine(sample.feeds), want) for sample, want in zip(samples, wanted, strict=True)]
    worst = int(np.argmax(errors))
    return Parity(error=errors[worst], tolerance=tolerance, worst=samples[worst].label)


def relative_error(got: dict[str, Array], want: dict[str, Array]) -> float:
    """max |got - want| / max |want| of the worst output, in float64; infinite where either holds NaN."""
    return max(relative_errors(got, want).values())
