"""`python -m tests.engines.stand_in COMMAND ...`: `edgediffusion` with a TensorRT and a GPU that are none.

ONNX Runtime computes what the engines do. A build takes as many seconds as STAND_IN_SECONDS says.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from edgediffusion.engines import cuda
from edgediffusion.runtime.cli import script

from .fake_tensorrt import FakeCuda, FakeTensorRT, Function

VERSION = "10.13.2.6"


class StandIn(FakeTensorRT):
    def function(self, model: str) -> Function:
        import onnxruntime

        if model not in self.computed:
            session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]
            self.computed[model] = lambda feeds: dict(zip(names, session.run(names, dict(feeds)), strict=True))
        return self.computed[model]

    def __init__(self, gpu: FakeCuda) -> None:
        super().__init__("tensorrt", VERSION, gpu, {})
        self.computed: dict[str, Function] = {}
        pause = float(os.environ.get("STAND_IN_SECONDS", "0")) / 20  # a build has so many steps
        self.on_step: Any = lambda step: time.sleep(pause)


if __name__ == "__main__":
    gpu = FakeCuda()
    cuda._api = lambda: gpu
    cuda._driver = lambda: "580.95.05"
    sys.modules["tensorrt"] = StandIn(gpu)  # type: ignore[assignment]
    script()
