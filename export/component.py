"""One component of a checkpoint: weights copied, graph written beside them, graph compared with torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel
from torch import nn

from edgediffusion.engines.errors import ExportError, one_line
from edgediffusion.engines.spec import Array, GraphSpec
from edgediffusion.runtime.families import Component
from edgediffusion.runtime.golden import golden_path
from edgediffusion.runtime.low_rank import FACTORS
from edgediffusion.runtime.manifest import GraphRecord, Parity, Variant

from .dialect import write_dialects
from .families import Network, Sample, Seen
from .golden import write_golden
from .options import Options
from .passes import matrices, store_weights
from .precision import INT8_TOLERANCE, Case, Halved, halve
from .sources import Part, select
from .to_onnx import quiet, to_onnx
from .verify import TOLERANCE, check_parity, references
from .weights import TORCH_DTYPES, StoredTensor, Weight, cast, factors_of, load, quantize, write_tensors

GRAPH = "model.onnx"
HALVES = {"float16": "F16", "bfloat16": "BF16"}  # what a graph computes in -> what its weights are stored in
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8"}


@dataclass(frozen=True)
class Exported:
    """What the bundle notes about a component.

    `outputs` are torch's, for later components to take as inputs; `remark` is a line for whoever exports.
    """

    record: GraphRecord
    outputs: list[dict[str, Array]]
    remark: str | None = None


def export_component(
    part: Part, component: Component, network: Network, seen: Seen, bundle: Path, options: Options
) -> Exported:
    """Write `bundle / component.folder`: config, weights and graph of `part`, and the factors of LoRAs added to them.

    Weights keep the type that the source has them in where the graph computes in float32, else they take its dtype;
    those that are multiplied with are in 8 bits where `options.weights` says so.

    Raises:
        ExportError: see `sources.Part`, `sources.select`, `weights.load`, `verify.check_parity` and `precision.halve`.
    """
    dtype = options.dtype_of(component.folder)
    module, stored = load_network(part, network)
    spec = network.spec(part.config)
    target = bundle / component.folder
    target.mkdir()
    (target / "config.json").write_text(json.dumps(part.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    main = _trace(module, spec, network.samples(part.config, seen), target, options.opset)
    further = {
        name: _trace(module, further.spec(part.config), further.samples(part.config, seen), target, options.opset)
        for name, further in network.variants.items()
        if further.needs in seen
    }
    for variant, case in [(None, main), *further.items()]:
        write_golden(bundle / golden_path(component.folder, variant), module, case.spec, case.samples)
    kept = _quantized(stored, main.model) if options.weights else _narrowed(stored, module, dtype)
    placed = write_tensors(target / component.weights, kept)
    if factors := factors_of(kept):
        write_tensors(target / FACTORS, factors)
    module.to("meta")  # ONNX Runtime now reads the same weights
    written, remark = _write_graph(main, placed, GRAPH, options)
    record = GraphRecord(
        model=written.model,
        spec=written.spec,
        parity=written.parity,
        dialects=written.dialects,
        weights=f"{component.folder}/{component.weights}",
        dtype=dtype,
        weights_dtype=", ".join(sorted({DTYPES[tensor.dtype] for tensor in placed.values()})),
        islands=written.islands,
        variants={name: _write_graph(case, placed, f"model.{name}.onnx", options)[0] for name, case in further.items()},
    )
    return Exported(record, list(main.wanted), remark)


def _quantized(stored: Mapping[str, Weight], graph: onnx.ModelProto) -> dict[str, Weight]:
    """The weights, those that `graph` multiplies with in 8 bits beside their scales."""
    chosen = matrices(graph)
    return {
        name: w
        for key, weight in stored.items()
        for name, w in (quantize(key, weight) if key in chosen else {key: weight}).items()
    }


def _narrowed(stored: Mapping[str, Weight], module: nn.Module, dtype: str) -> dict[str, Weight]:
    """The weights as `dtype` stores them, but for those that it cannot hold."""
    if dtype not in HALVES:
        return dict(stored)
    limit = torch.finfo(TORCH_DTYPES[HALVES[dtype]]).max
    values = module.state_dict()
    return {key: cast(w, HALVES[dtype]) if values[key].abs().max() <= limit else w for key, w in stored.items()}


def load_network(part: Part, network: Network) -> tuple[nn.Module, dict[str, Weight]]:
    """The network of `part` in float32, and its weights as they are stored.

    Raises:
        ExportError: see `match_network` and `weights.load`.
    """
    module, stored = match_network(part, network)
    module.load_state_dict({key: load(key, tensor) for key, tensor in stored.items()}, assign=True)
    return module, stored


def match_network(part: Part, network: Network) -> tuple[nn.Module, dict[str, Weight]]:
    """The network of `part`, empty, and its weights as they are stored, unread.

    Raises:
        ExportError: the config is of no such network, or see `sources.select`.
    """
    config = part.config
    try:
        with init_empty_weights(), quiet():
            module = network.module(config).eval()
            network.spec(config)
    except Exception as error:  # each library has its own for a config that makes no sense
        reason = one_line(repr(error))
        raise ExportError(f"{part.where / 'config.json'}: describes no network of this kind ({reason})") from error
    shapes = {key: tuple(weight.shape) for key, weight in module.state_dict().items()}
    return module, select(part, shapes, network.renames, network.skip)


def _trace(module: nn.Module, spec: GraphSpec, samples: list[Sample], folder: Path, opset: int) -> Case:
    """The float32 graph, its weights not placed yet, and what torch makes of the samples."""
    wanted = references(module, spec, samples)
    graph = to_onnx(module, spec, samples[0], opset)
    return Case(model=graph, spec=spec, folder=folder, samples=samples, wanted=wanted)


def _write_graph(
    traced: Case, placed: Mapping[str, StoredTensor], file: str, options: Options
) -> tuple[Variant, str | None]:
    """Write and check the graph as `options` have it, its weights where they are placed; the remark: `_check_here`."""
    case, dtype = replace(traced, model=store_weights(traced.model, placed)), options.dtype_of(traced.folder.name)
    halved = halve(case, dtype) if dtype in HALVES else None
    graph = case.model if halved is None else halved.model
    model = case.folder / file
    model.write_bytes(graph.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(model))
    tolerance = INT8_TOLERANCE if options.weights else TOLERANCE
    parity, remark = _check_here(graph, case, halved, tolerance)
    written = Variant(
        model=f"{case.folder.name}/{file}",
        spec=case.spec,
        parity=parity,
        islands=() if halved is None else halved.islands,
        dialects=write_dialects(traced, placed, halved, model, tolerance),
    )
    return written, remark


def _check_here(
    graph: onnx.ModelProto, case: Case, halved: Halved | None, tolerance: float
) -> tuple[Parity, str | None]:
    """The parity of the graph on this machine, or as on a GPU, whichever is worse; `tolerance` is that of float32.

    It is run as it is written: an engine's own copies of its weights would be two or three times the network.
    """
    try:
        engine = case.as_written(graph)
    except NoKernel:
        assert halved is not None
        return halved.parity, (
            f"{case.spec.name}: checked in float32 with every value rounded to {halved.dtype}, which ONNX Runtime's "
            "CPU provider here cannot run; run it on a GPU"
        )
    here = check_parity(engine, case.samples, case.wanted, tolerance if halved is None else halved.parity.tolerance)
    return here if halved is None else max(here, halved.parity, key=lambda parity: parity.error), None
