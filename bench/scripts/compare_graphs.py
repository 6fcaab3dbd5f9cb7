"""CPU time of ONNX files that compute the same, in turn, as JSON: SIZES ROUNDS FILE FILE...

SIZES are those of the free dimensions, such as batch=2,height=16,width=16. Each file runs on one thread of ONNX Runtime
in this process, with the options of ours. CPU time is what the thread had, so other programs count only by what they do
to caches. "ratios" are the first file's time over this one's, round by round: quartiles.
"""

import dataclasses
import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime

from edgediffusion.engines import ort
from edgediffusion.engines.ort_cuda import CPU
from edgediffusion.runtime.doctor import examine

SAME = {"batch_size": "batch"}  # what optimum calls a dimension


def open_session(file: str) -> onnxruntime.InferenceSession:
    """As `ort` opens the CPU's dialect, on one thread."""
    options = ort._options()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(file, options, providers=[CPU])


def feeds(session: onnxruntime.InferenceSession, sizes: dict[str, int]) -> dict[str, Any]:
    """Normal numbers, the same for each file; whole ones are 7."""
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {}
    for node in session.get_inputs():
        shape = [sizes[SAME.get(dim, dim)] if isinstance(dim, str) else dim for dim in node.shape]
        made[node.name] = np.full(shape, 7) if "int" in node.type else rng.standard_normal(shape).astype(np.float32)
    return made


def seconds(session: onnxruntime.InferenceSession, arrays: dict[str, Any]) -> float:
    """CPU time of a call."""
    started = time.thread_time()
    session.run(None, arrays)
    return time.thread_time() - started


if __name__ == "__main__":
    sizes = {name: int(size) for name, _, size in (part.partition("=") for part in sys.argv[1].split(","))}
    sessions = [open_session(file) for file in sys.argv[3:]]
    inputs = [feeds(session, sizes) for session in sessions]
    outputs = [session.run(None, arrays)[0] for session, arrays in zip(sessions, inputs, strict=True)]
    rounds = [[seconds(*pair) for pair in zip(sessions, inputs, strict=True)] for _ in range(int(sys.argv[2]))]
    times = np.array(rounds)
    found = {
        file: {
            "median_seconds": float(np.median(times[:, i])),
            "ratios": np.quantile(times[:, 0] / times[:, i], (0.25, 0.5, 0.75)).tolist(),
            "error": float(np.abs(outputs[i] - outputs[0]).max() / np.abs(outputs[0]).max()),
        }
        for i, file in enumerate(sys.argv[3:])
    }
    record = {"sizes": sizes, "rounds": len(rounds), "graphs": found, "environment": dataclasses.asdict(examine())}
    sys.stdout.write(json.dumps(record, indent=2) + "\n")
