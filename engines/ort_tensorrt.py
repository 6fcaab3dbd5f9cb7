"""ONNX Runtime's providers for TensorRT and TensorRT-RTX. They build engines of their own; we say where those are kept.

Written from ONNX Runtime's documentation (https://onnxruntime.ai/docs/execution-providers/): never run by us, but for
the provider for TensorRT of onnxruntime-gpu 1.31 where TensorRT is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

from .base import Building
from .errors import BackendUnavailable
from .onnx_file import digests
from .ort_cuda import CHECKS, CPU, CUDA
from .store import Store


@dataclass(frozen=True, kw_only=True)
class Provider:
    """`libraries` is the pip package of what it needs.

    `caches` are the options that name a folder, `half` those for graphs that compute in float16.
    """

    name: str
    libraries: str
    caches: tuple[str, ...]
    options: Mapping[str, str]
    half: Mapping[str, str]


PROVIDERS = {
    "tensorrt": Provider(
        name="TensorrtExecutionProvider",
        libraries="tensorrt==10.*",  # onnxruntime-gpu 1.31 loads libnvinfer.so.10
        caches=("trt_engine_cache_path", "trt_timing_cache_path"),
        options={"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"},
        half={"trt_fp16_enable": "1"},  # a hint to TensorRT before 11, which keeps the graph's own types
    ),
    "nv_tensorrt_rtx": Provider(
        name="NvTensorRTRTXExecutionProvider",
        libraries="tensorrt-rtx",
        caches=("nv_runtime_cache_path",),
        options={},
        half={},
    ),
}


def open_session(
    device: str, model: Path, options: onnxruntime.SessionOptions, building: Building
) -> onnxruntime.InferenceSession:
    """A session for `model` by the provider of this name.

    Raises:
        BackendUnavailable: this ONNX Runtime lacks it, or it does not work here.
        Exception: what ONNX Runtime says of a graph that it cannot load.
    """
    provider = PROVIDERS[device]
    if provider.name not in onnxruntime.get_available_providers():
        raise BackendUnavailable(
            f"onnxruntime {onnxruntime.__version__} here is built without {provider.name}",
            "install a wheel that has it, or take --backend tensorrt",
        )
    for check in CHECKS:
        check()
    cache = cache_of(device, model, building.sha256)
    cache.mkdir(parents=True, exist_ok=True)
    settings = {**provider.options, **(provider.half if building.precision == "float16" else {})}
    settings |= dict.fromkeys(provider.caches, str(cache))
    providers = [(provider.name, settings), CUDA, CPU]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=0)
    except Exception as error:
        if "install TensorRT libraries" not in str(error):
            raise
        raise _lacking(provider) from error
    if provider.name not in session.get_providers():
        raise _lacking(provider)
    return session


def _lacking(provider: Provider) -> BackendUnavailable:
    reason = f"the libraries of {provider.name} are missing or do not fit onnxruntime {onnxruntime.__version__}"
    return BackendUnavailable(reason, f"pip install '{provider.libraries}', or take --backend tensorrt")


def cache_of(device: str, model: Path, sha256: Mapping[Path, str]) -> Path:
    """A folder for engines of this graph over these weights, built by this ONNX Runtime, which names the GPU itself."""
    digest = "-".join(found[:12] for found in digests(model, sha256))
    return Store.of_user().folder / "ort" / f"{model.parent.name}-{device}-{onnxruntime.__version__}-{digest}"
