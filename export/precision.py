"""Half precision that is checked: which operators must stay in float32, and is the rest close enough to torch?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from edgediffusion.engines.base import HostEngine
from edgediffusion.engines.errors import ExportError
from edgediffusion.engines.spec import Array, GraphSpec
from edgediffusion.runtime.manifest import Parity

from .families.base import Sample
from .passes import clean, emulate_half, probe_ranges, to_half
from .passes.graph import float_values, float_weights
from .passes.probe_ranges import RANGES
from .passes.to_half import convertible
from .verify import measure

# Of torch's largest output. The 11 bits of float16 leave 5e-4 at each operator; whole networks were off by 6e-4 to 8e-3
# (those of the tests and the built-in model's). bfloat16 has 8 bits: 6e-3 to 6e-2 (those of the tests).
TOLERANCES = {"float16": 1e-2, "bfloat16": 8e-2}
# 8 bits are off by up to 4e-3 of a channel's largest weight; the built-in model's networks by 8e-3 to 7e-2.
INT8_TOLERANCE = 0.15
# float16 ends at 65504. Other pictures and prompts than the samples may go twice as far.
RANGE = 65504 / 2
MOST = 12  # islands that a search by error may add: with more, the whole component is better off in float32


@dataclass(frozen=True, kw_only=True)
class Case:
    """A float32 graph whose weights lie in `folder`, and what torch makes of each sample."""

    model: onnx.ModelProto
    spec: GraphSpec
    folder: Path
    samples: Sequence[Sample]
    wanted: Sequence[dict[str, Array]]

    def half(self, dtype: str, islands: Collection[str]) -> onnx.ModelProto:
        """The graph in `dtype`."""
        return clean(to_half(self.model, dtype, islands))

    def as_written(self, model: onnx.ModelProto) -> HostEngine:
        """An engine over a form of the graph, see `open_graph`."""
        return HostEngine(self.spec, open_graph(model, self.folder, [tensor.name for tensor in self.spec.outputs]))

    def check(self, dtype: str, islands: Collection[str], at: int | None = None) -> Parity:
        """How far `half` is from torch where each operator rounds its result; for the sample `at`, or all."""
        chosen = slice(None) if at is None else slice(at, at + 1)
        engine = self.as_written(emulate_half(self.half(dtype, islands)))
        return measure(engine, self.samples[chosen], self.wanted[chosen], TOLERANCES[dtype])


@dataclass(frozen=True)
class Halved:
    """A graph in half precision, the nodes that had to stay in float32, and its parity as on a GPU."""

    model: onnx.ModelProto
    dtype: str
    islands: tuple[str, ...]
    parity: Parity


def halve(case: Case, dtype: str) -> Halved:
    """The graph of `case` in `dtype`, "float16" or "bfloat16".

    Those whose values leave the range of float16 come first; the float32 graph tells. Then, while a sample misses its
    tolerance, the operator whose rounding costs most joins them, found by bisection on that sample.

    Raises:
        ExportError: `MOST` operators in float32 are not enough, or the weights do not bear to be rounded.
    """
    nodes = convertible(case.model, dtype)
    islands = out_of_range(case).intersection(nodes) if dtype == "float16" else set()
    parity, added = case.check(dtype, islands), list[str]()
    while not parity.error <= parity.tolerance:
        at = next(i for i, sample in enumerate(case.samples) if sample.label == parity.worst)
        if not added:
            _check_weights(case, dtype, nodes, at)
        if len(added) == MOST:
            raise ExportError(
                f"{_off(case, dtype, parity)}, also with these in float32: {', '.join(added)}; {_WAY_OUT}"
            )
        added.append(_worst(case, dtype, nodes, islands, at))
        islands = islands | {added[-1]}
        parity = case.check(dtype, islands)
    for name in added[:-1]:  # without the last one it failed
        fewer = case.check(dtype, islands - {name})
        if fewer.error <= fewer.tolerance:
            islands, parity = islands - {name}, fewer
    return Halved(case.half(dtype, islands), dtype, tuple(name for name in nodes if name in islands), parity)


def open_graph(
    model: onnx.ModelProto, folder: Path, outputs: Sequence[str]
) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """A function that runs `model`, whose weights lie in `folder`, as it is written.

    Without optimisations, and in the order of the graph, weights stay mapped from the file in their stored type and are
    widened one at a time: 384 MiB of float16 weights took 527 MiB to run, in ONNX Runtime's own order 1230.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda feeds: dict(zip(outputs, session.run(outputs, feeds), strict=True))


def out_of_range(case: Case) -> set[str]:
    """The nodes that make or take a value beyond `RANGE`, or a weight that is stored in float32 since it is, too."""
    values = float_values(case.model)
    run = open_graph(probe_ranges(case.model, values), case.folder, [RANGES])
    largest = np.max([run(sample.feeds)[RANGES] for sample in case.samples], axis=0)
    beyond = {value for value, size in zip(values, largest, strict=True) if size > RANGE} | float_weights(case.model)
    return {node.name for node in case.model.graph.node if beyond.intersection((*node.input, *node.output))}


def _worst(case: Case, dtype: str, nodes: list[str], islands: Collection[str], at: int) -> str:
    """The operator that is off most when few others are half: bisection by the error of either half alone."""
    suspects = [name for name in nodes if name not in islands]
    while len(suspects) > 1:
        middle = len(suspects) // 2
        halves = (suspects[:middle], suspects[middle:])
        suspects = max(halves, key=lambda half: case.check(dtype, set(nodes).difference(half), at).error)
    return suspects[0]


def _check_weights(case: Case, dtype: str, nodes: list[str], at: int) -> None:
    parity = case.check(dtype, nodes, at)
    if not parity.error <= parity.tolerance:
        raise ExportError(f"{_off(case, dtype, parity)} by the rounding of its weights alone; {_WAY_OUT}")


def _off(case: Case, dtype: str, parity: Parity) -> str:
    return (
        f"{case.spec.name}: off by {parity.error:.2g} of torch's largest output in {dtype} ({parity.worst}), "
        f"tolerance {parity.tolerance:.2g}"
    )


_WAY_OUT = "export this component with --dtype COMPONENT=fp32"
