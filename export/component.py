"""One component of a checkpoint: weights copied, graph written beside them, graph compared with torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from torch import nn

from edgediffusion.engines.errors import BundleError, ExportError
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import Array, GraphSpec
from edgediffusion.runtime.families import Component
from edgediffusion.runtime.golden import GOLDEN
from edgediffusion.runtime.manifest import GraphRecord, Parity, Variant

from .families import Network, Sample, Seen
from .golden import write_golden
from .options import Options
from .passes import store_weights
from .precision import Case, Halved, halve
from .sources import Part, select
from .to_onnx import quiet, to_onnx
from .verify import check_parity, references
from .weights import TORCH_DTYPES, StoredTensor, Weight, cast, load, write_tensors

GRAPH = "model.onnx"
HALVES = {"float16": "F16", "bfloat16": "BF16"}  # what a graph computes in -> what its weights are stored in
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


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
    """Write `bundle / component.folder`: config, weights and graph of `part`.

    Weights keep the type that the source has them in where the graph computes in float32, else they take its dtype.

    Raises:
        ExportError: see `sources.Part`, `sources.select`, `weights.load`, `verify.check_parity` and `precision.halve`.
    """
    dtype = options.dtype_of(component.folder)
    module, spec = _build(part, network)
    shapes = {key: tuple(weight.shape) for key, weight in module.state_dict().items()}
    stored = select(part, shapes, network.renames, network.skip)
    target = bundle / component.folder
    target.mkdir()
    (target / "config.json").write_text(json.dumps(part.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    module.load_state_dict({key: load(key, tensor) for key, tensor in stored.items()}, assign=True)
    placed = write_tensors(target / component.weights, _narrowed(stored, module, dtype))
    main = _trace(module, spec, network.samples(part.config, seen), placed, options.opset)
    write_golden(bundle / GOLDEN / f"{component.folder}.safetensors", module, spec, main.samples)
    further = {
        name: _trace(module, variant.spec(part.config), variant.samples(part.config, seen), placed, options.opset)
        for name, variant in network.variants.items()
        if variant.needs in seen
    }
    module.to("meta")  # ONNX Runtime now reads the same weights
    written, halved, remark = _write_graph(main, GRAPH, dtype)
    record = GraphRecord(
        model=written.model,
        spec=written.spec,
        parity=written.parity,
        weights=f"{component.folder}/{component.weights}",
        dtype=dtype,
        weights_dtype=", ".join(sorted({DTYPES[tensor.dtype] for tensor in placed.values()})),
        islands=halved.islands if halved else (),
        variants={name: _write_graph(case, f"model.{name}.onnx", dtype)[0] for name, case in further.items()},
    )
    return Exported(record, list(main.wanted), remark)


def _narrowed(stored: Mapping[str, Weight], module: nn.Module, dtype: str) -> dict[str, Weight]:
    """The weights as `dtype` stores them, but for those that it cannot hold."""
    if dtype not in HALVES:
        return dict(stored)
    limit = torch.finfo(TORCH_DTYPES[HALVES[dtype]]).max
    values = module.state_dict()
    return {key: cast(w, HALVES[dtype]) if values[key].abs().max() <= limit else w for key, w in stored.items()}


def _build(part: Part, network: Network) -> tuple[nn.Module, GraphSpec]:
    """The network without weights: those come from the file."""
    config = part.config
    try:
        with init_empty_weights(), quiet():
            return network.module(config).eval(), network.spec(config)
    except Exception as error:  # each library has its own for a config that makes no sense
        reason = " ".join(repr(error).split())
        raise ExportError(f"{part.where / 'config.json'}: describes no network of this kind ({reason})") from error


def _trace(
    module: nn.Module, spec: GraphSpec, samples: list[Sample], placed: dict[str, StoredTensor], opset: int
) -> Case:
    """The float32 graph, and what torch makes of the samples."""
    wanted = references(module, spec, samples)
    graph = store_weights(to_onnx(module, spec, samples[0], opset), placed)
    folder = next(iter(placed.values())).file.parent
    return Case(model=graph, spec=spec, folder=folder, samples=samples, wanted=wanted)


def _write_graph(case: Case, file: str, dtype: str) -> tuple[Variant, Halved | None, str | None]:
    """Write and check the graph of `case` as `dtype` has it; the remark is that of `_check_here`."""
    halved = halve(case, dtype) if dtype in HALVES else None
    graph = case.model if halved is None else halved.model
    model = case.folder / file
    model.write_bytes(graph.SerializeToString(deterministic=True))
    onnx.checker.check_model(str(model))
    parity, remark = _check_here(model, case, halved)
    return Variant(model=f"{case.folder.name}/{file}", spec=case.spec, parity=parity), halved, remark


def _check_here(model: Path, case: Case, halved: Halved | None) -> tuple[Parity, str | None]:
    """The parity of the graph on this machine, or as on a GPU, whichever is worse."""
    try:
        with open_engine(model, case.spec, device="cpu") as engine:
            if halved is None:
                return check_parity(engine, case.samples, case.wanted), None
            here = check_parity(engine, case.samples, case.wanted, halved.parity.tolerance)
            return max(here, halved.parity, key=lambda parity: parity.error), None
    except BundleError:
        if halved is None:
            raise
        return halved.parity, (
            f"{case.spec.name}: checked in float32 with every value rounded to {halved.dtype}, which ONNX Runtime's "
            "CPU provider here cannot run; run it on a GPU"
        )
