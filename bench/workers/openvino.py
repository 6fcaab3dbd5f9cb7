"""OpenVINO's own runtime over the graphs of the same bundle, as `serve` runs it. It has no pipeline: no pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import openvino

Call = Callable[[], Mapping[str, Any]]


def load(request: Mapping[str, Any]) -> dict[str, Callable[..., Call]]:
    """Compile each graph for the CPU; see `serve`."""
    core = openvino.Core()
    device = "CPU" if request["device"] in ("cpu", "auto") else "GPU"
    # Without the hint it computes in bfloat16 where the processor can.
    settings = {"INFERENCE_PRECISION_HINT": "f32" if request["dtype"] == "float32" else "f16"}
    if device == "CPU":
        settings |= {"INFERENCE_NUM_THREADS": request["threads"]}
    names = ("text_encoder", "text_encoder_2", "unet", "vae_decoder")
    models = {name: Path(request["source"]) / name / "model.onnx" for name in names}
    return {
        name: partial(_graph, core.compile_model(model, device, settings))
        for name, model in models.items()
        if model.exists()
    }


def _graph(compiled: Any, feeds: dict[str, Any]) -> Call:
    infer = compiled.create_infer_request()

    def run() -> Mapping[str, Any]:
        outputs = infer.infer(feeds)
        return {output.get_any_name(): value for output, value in outputs.items()}

    return run


def versions() -> dict[str, str]:
    """See `serve`."""
    return {"openvino": openvino.__version__}
