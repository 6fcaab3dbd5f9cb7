"""A graph in the operators of one device's provider, checked where there is no such device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from edgediffusion.engines.ort_kernels import DIALECT as KERNELS
from edgediffusion.runtime.manifest import Dialect

from .passes import clean, emulate_half, store_weights
from .passes.cpu import to_cpu_dialect
from .passes.cuda import to_cuda_dialect
from .passes.cuda.own_kernels import to_own_kernels
from .passes.cuda.portable import to_portable
from .passes.cuda.turned_kernels import declare_turned
from .precision import Case, Halved
from .verify import check_parity
from .weights import StoredTensor

CPU, CUDA = "cpu", "cuda"


def write_dialects(
    traced: Case, placed: Mapping[str, StoredTensor], halved: Halved | None, model: Path, tolerance: float
) -> dict[str, Dialect]:
    """Write those that there are of the graph in the file `model` beside it, by the device's name.

    In float32 that is one for ONNX Runtime's CPU provider, of the graph `traced` with its weights where they are
    `placed`; in float16 one for its CUDA provider, whose fused operators are for float16, of the graph `halved`, and
    one of that with our own kernels. These are checked as `halved` was: computed from the operators' definitions, every
    value rounded to float16. What changes nothing is not written.

    Raises:
        ExportError: the result misses `tolerance`, or that of float16.
    """
    if halved is None:
        dialect, changed = to_cpu_dialect(traced.model)
        dialect = store_weights(dialect, placed)
        return _write(CPU, dialect, changed, replace(traced, model=dialect), model, tolerance)
    if halved.dtype != "float16":
        return {}
    written, dialect = dict[str, Dialect](), halved.model
    for name, rewrite in {CUDA: to_cuda_dialect, KERNELS: to_own_kernels}.items():
        dialect, changed = rewrite(dialect)
        if any(changed.values()):
            rounded = replace(traced, model=emulate_half(clean(to_portable(dialect))))
            written |= _write(name, declare_turned(dialect), changed, rounded, model, halved.parity.tolerance)
    return written


def _write(
    device: str, dialect: onnx.ModelProto, changed: Mapping[str, int], check: Case, model: Path, tolerance: float
) -> dict[str, Dialect]:
    """Write `dialect` if what `check` computes is close enough to torch."""
    named = replace(check, spec=replace(check.spec, name=f"{check.spec.name} for {device}"))
    parity = check_parity(named.as_written(check.model), check.samples, check.wanted, tolerance)
    file = model.with_suffix(f".{device}.onnx")
    file.write_bytes(dialect.SerializeToString(deterministic=True))
    return {device: Dialect(model=f"{check.folder.name}/{file.name}", parity=parity, changed=changed)}
