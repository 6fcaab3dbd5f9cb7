"""One component of a checkpoint: weights copied, graph written beside them, graph compared with torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import onnx
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import nn

from edgediffusion.engines.errors import ExportError
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import Array, GraphSpec
from edgediffusion.runtime.families import Component
from edgediffusion.runtime.manifest import GraphRecord

from .families import Network, Sample, Seen
from .passes import simplify, store_weights
from .sources import Part, select
from .to_onnx import quiet, to_onnx
from .verify import check_parity, references
from .weights import StoredTensor, load, write_tensors

GRAPH = "model.onnx"


@dataclass(frozen=True)
class Exported:
    """What the bundle notes about a component. `outputs` are torch's, for later components to take as inputs."""

    record: GraphRecord
    outputs: list[dict[str, Array]]
    dtypes: frozenset[str]


def export_component(part: Part, component: Component, network: Network, seen: Seen, bundle: Path) -> Exported:
    """Write `bundle / component.folder`: config, weights and graph of `part`.

    Raises:
        ExportError: see `sources.Part`, `sources.select`, `weights.load` and `verify.check_parity`.
    """
    module, spec = _build(part, network)
    shapes = {key: tuple(weight.shape) for key, weight in module.state_dict().items()}
    stored = select(part, shapes, network.renames, network.skip)
    target = bundle / component.folder
    target.mkdir()
    (target / "config.json").write_text(json.dumps(part.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    placed = write_tensors(target / component.weights, stored)
    module.load_state_dict({key: load(key, tensor) for key, tensor in stored.items()}, assign=True)
    return _write_graph(module, spec, network.samples(part.config, seen), placed, target)


def _build(part: Part, network: Network) -> tuple[nn.Module, GraphSpec]:
    """The network without weights: those come from the file."""
    config = part.config
    try:
        with init_empty_weights(), quiet():
            return network.module(config).eval(), network.spec(config)
    except Exception as error:  # each library has its own for a config that makes no sense
        reason = " ".join(repr(error).split())
        raise ExportError(f"{part.where / 'config.json'}: describes no network of this kind ({reason})") from error


def _write_graph(
    module: nn.Module, spec: GraphSpec, samples: list[Sample], placed: dict[str, StoredTensor], target: Path
) -> Exported:
    outputs = references(module, spec, samples)
    graph = store_weights(simplify(to_onnx(module, spec, samples[0])), placed)
    module.to("meta")  # ONNX Runtime now reads the same weights
    model = target / GRAPH
    model.write_bytes(graph.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(model))
    with open_engine(model, spec, device="cpu") as engine:
        parity = check_parity(engine, samples, outputs)
    weights = next(iter(placed.values())).file
    record = GraphRecord(
        model=model.relative_to(target.parent).as_posix(),
        weights=weights.relative_to(target.parent).as_posix(),
        spec=spec,
        parity=parity,
    )
    return Exported(record, outputs, frozenset(tensor.dtype for tensor in placed.values()))
