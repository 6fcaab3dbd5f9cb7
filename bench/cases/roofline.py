"""How much of what the machine can do a graph gets: its matrix rate and its bandwidth, measured in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..costs import count
from ..schema import OURS
from ..session import Session

_ELEMENTS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
_EDGE = {"cpu": 1024, "cuda": 8192}  # of the matrices: large enough that nothing but the product counts
_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}  # of what is copied: many times what caches hold
COMPONENTS = ("text_encoder", "unet", "vae_decoder")


def roofline(session: Session) -> None:
    """Share = the least time that the rates allow / p50. Of the networks that were measured before.

    The least time is that of the FLOPs at the matrix rate, or of the bytes at the bandwidth, whichever is longer.
    """
    dtype = session.manifest.graphs["unet"].dtype
    kind = "cpu" if session.settings.device == "cpu" else "cuda"
    edge, size = _EDGE[kind], np.dtype("float32" if dtype == "float32" else "float16").itemsize
    length = _BYTES[kind] // size
    flops = _best(session, "MatMul", dtype, [(edge, edge)] * 2) ** -1 * 2 * edge**3
    # A negation moves what a copy does; a copy alone ONNX Runtime would leave out.
    bandwidth = _best(session, "Neg", dtype, [(length,)]) ** -1 * 2 * length * size
    session.record("roofline", OURS, "FLOP/s", [(flops,)], {"of": f"MatMul {edge}x{edge}, {dtype}"})
    session.record("roofline", OURS, "bytes/s", [(bandwidth,)], {"of": f"Neg of {_BYTES[kind]} bytes"})
    for name in COMPONENTS:
        for measured in [m for m in session.measurements if m.case == name]:
            record = session.manifest.graphs[name]
            cost = count(session.bundle / record.model, record.spec, dict(measured.parameters))
            least = max(cost.flops / flops, cost.bytes / bandwidth)
            if measured.contender == OURS:
                session.record("cost", OURS, "FLOP", [(cost.flops,)], {"of": name})
                session.record("cost", OURS, "bytes", [(cost.bytes,)], {"of": name})
            session.record("roofline", measured.contender, "", [(least / measured.median,)], {"of": name})


def _best(session: Session, operator: str, dtype: str, shapes: list[tuple[int, ...]]) -> float:
    """Seconds of the fastest call: what the machine can do, not what it does while others use it too."""
    model = write_operator(session.folder / f"{operator}.onnx", operator, dtype, shapes)
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {
        f"x{i}": rng.standard_normal(shape, np.float32).astype("float32" if dtype == "float32" else "float16")
        for i, shape in enumerate(shapes)
    }
    np.savez(session.folder / "operands.npz", **feeds)
    worker = session.ours()
    path = str(session.folder / "operands.npz")
    worker.ask("prepare", call="bare", feeds=path, parameters={"model": str(model)})
    return min(worker.run(5 * session.settings.rounds))


def write_operator(path: Path, operator: str, dtype: str, shapes: list[tuple[int, ...]]) -> Path:
    """A model of one operator, with inputs x0, x1, ... of these shapes."""
    element = _ELEMENTS[dtype]
    inputs = [helper.make_tensor_value_info(f"x{i}", element, shape) for i, shape in enumerate(shapes)]
    output = helper.make_tensor_value_info("y", element, None)
    node = helper.make_node(operator, [value.name for value in inputs], ["y"])
    model = helper.make_model(
        helper.make_graph([node], operator, inputs, [output]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, path)
    return path
