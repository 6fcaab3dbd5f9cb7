"""A graph in the operators of one device's provider, checked where there is no such device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgediffusion.runtime.manifest import Dialect

from .passes import clean, emulate_half
from .passes.cuda import to_cuda_dialect
from .passes.cuda.portable import to_portable
from .precision import Case, Halved
from .verify import check_parity

CUDA = "cuda"


def write_dialects(case: Case, halved: Halved | None, model: Path) -> dict[str, Dialect]:
    """Write those that there are of the graph `halved` beside the file `model`, by the device's name.

    That is one for ONNX Runtime's CUDA provider, whose fused operators are for float16. It is checked as `halved` was:
    computed from the operators' definitions, every value rounded to float16.

    Raises:
        ExportError: the result misses the tolerance of float16.
    """
    if halved is None or halved.dtype != "float16":
        return {}
    dialect, changed = to_cuda_dialect(halved.model)
    named = replace(case, spec=replace(case.spec, name=f"{case.spec.name} for {CUDA}"))
    engine = named.as_written(emulate_half(clean(to_portable(dialect))))
    parity = check_parity(engine, case.samples, case.wanted, halved.parity.tolerance)
    file = model.with_suffix(f".{CUDA}.onnx")
    file.write_bytes(dialect.SerializeToString(deterministic=True))
    return {CUDA: Dialect(model=f"{case.folder.name}/{file.name}", parity=parity, changed=changed)}
