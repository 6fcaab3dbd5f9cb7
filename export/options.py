"""What an export is asked for: the flags of `edgediffusion export`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.manifest import Static

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
WEIGHTS = ("int8",)
OPSETS = range(18, 24)  # of ONNX
# In half precision only where named: a safety checker's scores are what is left of like numbers, to three digits.
EXACT = ("safety_checker",)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a checkpoint becomes a bundle. Sources are whatever `sources.open_source` takes.

    `dtype` is what each component computes in, by folder; "" stands for all that are not named, float32 if absent,
    but for those in `EXACT`.
    `weights` "int8" stores what is multiplied with in 8 bits, for float32 only.
    `static` makes graphs for that batch and size alone; None makes them for any.
    `loras` are files with their scales, `embeddings` textual inversions. `revision` is that of a hub's repository.
    `license` is that of the weights; None takes what the checkpoint says. `resume` keeps what an interrupted export
    had finished.
    """

    dtype: Mapping[str, str] = field(default_factory=dict)
    weights: str | None = None
    opset: int = 18
    static: Static | None = None
    license: str | None = None
    vae: str | None = None
    unet: str | None = None
    controlnets: tuple[str, ...] = ()
    loras: tuple[tuple[Path, float], ...] = ()
    embeddings: tuple[Path, ...] = ()
    revision: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise UsageError(f"--opset {self.opset}; wanted {OPSETS[0]} to {OPSETS[-1]}, 18 runs on most machines")
        if self.weights and (halves := {name for name in self.dtype.values() if name != "float32"}):
            names = ", ".join(sorted(halves))
            raise UsageError(
                f"--weights {self.weights} is for graphs in fp32, got --dtype {names}; leave one of them out"
            )

    def dtype_of(self, component: str) -> str:
        """What the component in this folder computes in."""
        general = "float32" if component in EXACT else self.dtype.get("", "float32")
        return self.dtype.get(component, general)
