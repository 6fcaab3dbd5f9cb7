"""ONNX Runtime's CUDA provider: its options, and why it does not work where it does not."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import io
import os
import sys
import warnings
from collections.abc import Callable

import onnxruntime

from .errors import BackendUnavailable, OutOfMemory
from .onnx_relocate import loadable
from .ort_arena import ARENA
from .ort_device import failed, lacking
from .ort_weights import give_weights, release
from .packed import File

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# Measured on an H100 with Stable Diffusion 1.5 in float16, in the dialect of `export/passes/cuda`, ONNX Runtime 1.31:
# bench/NOTES.md. Left off: prefer_nhwc, since the dialect has its own NHWC and with free sizes it puts an operator on
# the CPU; fuse_conv_bias, which compiles kernels, so that the UNet's first call takes 4.2 s, not 0.7 s, to save 0.1 to
# 0.3 ms of 7.3 in later ones.
OPTIONS = {
    "enable_cuda_graph": "1",
    "cudnn_conv_algo_search": "HEURISTIC",  # no trials: EXHAUSTIVE's first call takes seconds more, DEFAULT's 65 s
    "cudnn_conv_use_max_workspace": "1",  # the default; some of the fast algorithms need it
    "arena_extend_strategy": "kSameAsRequested",  # of a session's own arena, where ours is not: else it doubles
    "sdpa_kernel": "10",  # cuDNN's (8) or the memory-efficient one (2); pictures by flash (1) were NaN
}
# For graphs that compute in float32: TF32 keeps 10 of the 23 bits, and the tolerance of such a graph is 1e-4. Not for
# others: it takes the tensor cores from convolutions in float16, too (ONNX Runtime's conv.cc).
EXACT = {"use_tf32": "0"}
# What cuBLAS sets aside for each of its two handles in a session: 8 MiB, where it takes 64 MiB by itself on an H100.
# The three sessions of Stable Diffusion 1.5 need 352 MB less; no call was seen to take longer for it.
# A variable of the process, so whoever else uses cuBLAS there (torch) follows it, unless it was set before.
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:2:16:8"


class NotCaptured(UserWarning):
    """A graph with an operator that has no CUDA kernel: its launches are not captured, and it runs slower."""


class OnCpu(UserWarning):
    """This machine has an NVIDIA driver, but its GPU cannot be used as things are: the CPU is."""


def open_session(
    model: File, options: onnxruntime.SessionOptions, *, exact: bool = False
) -> onnxruntime.InferenceSession:
    """A session for `model` on the first GPU; to be called in the device's thread.

    With `exact`, for graphs that compute in float32, products are those of float32.

    Raises:
        BackendUnavailable: there is none, or the provider does not work here.
        EngineError: the model does not fit on it.
        NotTaken: see there.
        Exception: what ONNX Runtime says of a graph that it cannot load.

    Warns:
        NotCaptured: see there.
    """
    for check in CHECKS:
        check()
    os.environ.setdefault(*WORKSPACE)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
        onnxruntime.preload_dlls()
    ARENA.share(options)
    try:
        weights = give_weights(model, options)
    except OutOfMemory as error:
        raise lacking(OutOfMemory(f"{model}: {error}")) from error
    cuda = OPTIONS | EXACT if exact else OPTIONS
    try:
        session = _open(model, options, cuda)
    except Exception as error:
        if "graph capture" in str(error):  # which it refuses for a graph with an operator that has no CUDA kernel
            warnings.warn(NotCaptured(f"{model}: not all of it runs on the GPU, so it is slower"), stacklevel=2)
            session = _open(model, options, cuda | {"enable_cuda_graph": "0"})
        elif isinstance(raised := failed(str(model), "cuda", error), OutOfMemory):
            weights.clear()
            raise lacking(raised) from error
        else:
            raise
    if CUDA not in session.get_providers():
        raise BackendUnavailable(
            "the CUDA libraries of onnxruntime-gpu are missing or do not fit",
            "pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )
    release(weights)
    return session


def _open(model: File, options: onnxruntime.SessionOptions, cuda: dict[str, str]) -> onnxruntime.InferenceSession:
    # Without enable_fallback=0 a provider that fails prints a banner and leaves the work to the CPU.
    providers = [(CUDA, cuda), CPU]
    with ARENA.keeping():
        return onnxruntime.InferenceSession(loadable(model, options), options, providers=providers, enable_fallback=0)


def _check_wheel() -> None:
    if CUDA in onnxruntime.get_available_providers():
        return
    try:
        importlib.metadata.version("onnxruntime-gpu")
    except importlib.metadata.PackageNotFoundError:
        raise BackendUnavailable(
            f"onnxruntime {onnxruntime.__version__} here is built without CUDA",
            "pip uninstall -y onnxruntime && pip install 'edgediffusion[cuda]'",
        ) from None
    raise BackendUnavailable(
        "onnxruntime-gpu is installed, but another wheel of ONNX Runtime, without CUDA, was written over it",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'edgediffusion[cuda]'",
    )


def find_driver() -> ctypes.CDLL | None:
    """The library of the NVIDIA driver, None where there is none."""
    try:
        return ctypes.CDLL("libcuda.so.1" if sys.platform == "linux" else "nvcuda")
    except OSError:
        return None


def cuda_of(driver: ctypes.CDLL) -> int:
    """The latest version of CUDA that the driver knows, such as 13000."""
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    return version.value


def _check_driver() -> None:
    """ONNX Runtime keeps the reason to itself, so this asks the driver."""
    driver = find_driver()
    if driver is None:
        raise BackendUnavailable(
            "no NVIDIA driver on this machine", "install it, give a container --gpus all, or take device 'cpu'"
        )
    count = ctypes.c_int()
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        raise BackendUnavailable(
            f"the NVIDIA driver finds no GPU (status {status})", "see nvidia-smi, or take device 'cpu'"
        )
    if count.value == 0:
        raise BackendUnavailable("the NVIDIA driver finds no GPU", "see nvidia-smi, or take device 'cpu'")
    known, built = cuda_of(driver), built_for()
    if known // 1000 < built:
        raise BackendUnavailable(
            f"the NVIDIA driver knows CUDA up to {known // 1000}.{known % 1000 // 10}, "
            f"onnxruntime-gpu {onnxruntime.__version__} needs {built}",
            f"update the driver, or install a wheel for CUDA {known // 1000}",
        )


CHECKS: tuple[Callable[[], None], ...] = (_check_wheel, _check_driver)


def built_for() -> int:
    """The major version of CUDA that this ONNX Runtime was built for; 0 where it does not say."""
    from onnxruntime.capi import build_and_package_info

    return int(str(getattr(build_and_package_info, "cuda_version", None) or "0").split(".")[0])
