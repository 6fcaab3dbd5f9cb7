"""Export a checkpoint with optimum's exporter, and print time, memory and bytes as JSON: CHECKPOINT OUT PYTHON.

PYTHON is the interpreter of an environment with optimum-onnx, see CONTRIBUTING.md. The exporter runs as its user runs
it: in one process, with its validation. `export_random.py` prints the same of ours.
"""

import dataclasses
import json
import sys
from pathlib import Path

from edgediffusion.runtime.doctor import examine

from ..processes import execute

if __name__ == "__main__":
    checkpoint, out = (str(Path(argument).resolve()) for argument in sys.argv[1:3])
    exporter = [sys.argv[3], "-m", "optimum.exporters.onnx", "--task", "text-to-image"]  # no default for a folder
    execution = execute([*exporter, "--model", checkpoint, out], Path())
    figures = {
        "seconds": execution.seconds,
        "peak_bytes": execution.peak_bytes,
        "bytes": sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file()),
        "environment": dataclasses.asdict(examine()),
    }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
