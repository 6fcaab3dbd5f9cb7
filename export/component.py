"""One component of a checkpoint: weights copied, graph written beside them, graph compared with torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import nn

from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import Array
from edgediffusion.runtime.families import Component
from edgediffusion.runtime.manifest import GraphRecord

from .families import Network, Seen
from .passes import simplify, store_weights
from .sources import Config, read_tensors, select
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


def export_component(
    folder: Path, config: Config, component: Component, network: Network, seen: Seen, bundle: Path
) -> Exported:
    """Write `bundle / component.folder`: weights and graph of the component that lies in `folder`.

    Raises:
        ExportError: see `sources.read_tensors`, `sources.select`, `weights.load` and `verify.check_parity`.
    """
    with init_empty_weights(), quiet():
        module = network.module(config).eval()
    shapes = {key: tuple(weight.shape) for key, weight in module.state_dict().items()}
    stored = select(read_tensors(folder), shapes, network.renames, network.skip, folder)
    target = bundle / component.folder
    target.mkdir()
    placed = write_tensors(target / component.weights, stored)
    module.load_state_dict({key: load(key, tensor) for key, tensor in stored.items()}, assign=True)
    return _write_graph(module, config, network, seen, placed, target)


def _write_graph(
    module: nn.Module, config: Config, network: Network, seen: Seen, placed: dict[str, StoredTensor], target: Path
) -> Exported:
    spec = network.spec(config)
    samples = network.samples(config, seen)
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
