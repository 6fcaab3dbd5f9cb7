"""Export random weights in the real shape of a model, and print time, memory and bytes as JSON.

Arguments: sd15|sd21|sdxl FOLDER [fp16|bf16]. The checkpoint goes to FOLDER/checkpoint, in float16, unless there is one;
the bundle goes to FOLDER/bundle.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path

from edgediffusion.export.options import DTYPES, Options
from edgediffusion.export.write_bundle import export_bundle
from edgediffusion.runtime.doctor import examine

from ..random_model import write_checkpoint

if __name__ == "__main__":
    model, out = sys.argv[1], Path(sys.argv[2])
    options = Options(dtype={"": DTYPES[sys.argv[3]]} if sys.argv[3:] else {})
    checkpoint = out / "checkpoint"
    if not checkpoint.exists():
        write_checkpoint(model, checkpoint)
    started, lines = time.monotonic(), list[str]()

    def report(line: str) -> None:
        """To stderr with the time, and into the JSON."""
        lines.append(f"{time.monotonic() - started:.1f} s: {line}")
        sys.stderr.write(f"{lines[-1]}\n")

    manifest = export_bundle(checkpoint, out / "bundle", options, report=report)
    figures = {
        "model": model,
        "weights": {path.parent.name: path.stat().st_size // 2 for path in checkpoint.rglob("*.safetensors")},
        "seconds": time.monotonic() - started,
        "bundle_bytes": sum(record.bytes for record in manifest.files.values()),
        "stages": lines,
        "environment": dataclasses.asdict(examine()),
    }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
