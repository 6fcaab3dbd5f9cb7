"""The peers. To add one: a file beside this one that `serve` runs, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Someone to compare with: `worker` is the file here that runs it, `needs` are the modules that must be there.

    `reads` says what it opens: the "bundle", or the "checkpoint" that `to_diffusers` makes of it. `options` go to the
    worker's `load`.
    """

    worker: str
    needs: tuple[str, ...]
    reads: str
    options: Mapping[str, Any] = field(default_factory=dict)


_TORCH = ("torch", "diffusers", "transformers")
PEERS: dict[str, Peer] = {
    "diffusers": Peer(worker="diffusers", needs=_TORCH, reads="checkpoint"),
    "torch-compile": Peer(worker="diffusers", needs=_TORCH, reads="checkpoint", options={"compile": True}),
    "optimum": Peer(worker="optimum", needs=("optimum.onnxruntime",), reads="bundle"),
    "openvino": Peer(worker="openvino", needs=("openvino",), reads="bundle"),
}
