"""Our own operators for ONNX Runtime's CUDA provider: `kernels/`, compiled for the GPU that is there."""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from typing import Any

import onnxruntime

from .errors import BackendUnavailable, one_line
from .ort_cuda import CHECKS, built_for, cuda_of, find_driver
from .ort_cuda import open_session as open_on_cuda
from .ort_library import FOLDER, LIBRARY, OtherSources, load_library
from .packed import File

DIALECT = "cuda-kernels"  # the name of graphs with these operators
SOURCE = FOLDER / "kernels.cu"
_ANEW = "install a C compiler, then edgediffusion anew"
_GIVING = threading.Lock()  # one thread compiles them, others wait
_CAPABILITY = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


class NoKernels(BackendUnavailable):
    """Our own operators cannot be had here."""


def open_session(model: File, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """As `ort_cuda.open_session`, for a graph of our own operators.

    Raises:
        NoKernels: they were not compiled when this package was installed, or cannot be now.
    """
    prepare()
    try:
        options.register_custom_ops_library(str(LIBRARY))
    except Exception as error:
        raise NoKernels(f"ONNX Runtime does not take {LIBRARY.name} ({one_line(error)})", _ANEW) from error
    return open_on_cuda(model, options)


def prepare() -> None:
    """What `open_session` does first, and others need not wait for: it is no work on the device.

    Raises:
        BackendUnavailable: there is no GPU, or the provider does not work here.
        NoKernels: see `open_session`.
    """
    for check in CHECKS:
        check()
    with _GIVING:
        give_kernels()


@functools.cache
def give_kernels() -> None:
    """Compile the kernels for the first GPU and give them to the library, once a process; `CHECKS` have passed.

    Raises:
        NoKernels: see `open_session`.
    """
    if sys.platform != "linux":
        raise NoKernels("our own kernels are for Linux", "take Linux, or WSL")
    try:
        library = load_library()
    except OtherSources as error:
        raise NoKernels(str(error), "install edgediffusion anew") from error
    except OSError as error:
        raise NoKernels(f"our own kernels are missing ({error})", _ANEW) from error
    cubin = compile_kernels(_capability())
    if (compiler := _compiler_version()) > (known := _driver_version()):
        raise NoKernels(f"NVRTC here is of CUDA {compiler}, the driver knows CUDA up to {known}", _nvrtc_anew())
    if library.edgediffusion_kernels(cubin, len(cubin)):
        raise MemoryError


def _capability() -> str:
    """Of the first GPU, such as "90"."""
    driver, numbers = find_driver(), [ctypes.c_int(), ctypes.c_int()]
    assert driver is not None  # CHECKS
    driver.cuInit(0)
    for number, attribute in zip(numbers, _CAPABILITY, strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, 0)
    return "".join(str(number.value) for number in numbers)


def _driver_version() -> int:
    """The major version of CUDA that the driver was made for; it loads nothing that a later one compiled."""
    driver = find_driver()
    assert driver is not None  # CHECKS
    return cuda_of(driver) // 1000


def _compiler_version() -> int:
    """The major version of CUDA that NVRTC is of."""
    from cuda.bindings import nvrtc

    return int(_nvrtc(nvrtc.nvrtcVersion()))


def compile_kernels(capability: str) -> bytes:
    """A cubin for GPUs of this compute capability, such as "90"; needs no GPU and takes about 0.2 s.

    Raises:
        NoKernels: NVRTC is missing, or does not know these GPUs.
    """
    try:
        from cuda.bindings import nvrtc

        program = _nvrtc(nvrtc.nvrtcCreateProgram(SOURCE.read_bytes(), SOURCE.name.encode(), 0, [], []))
        flags = [f"--gpu-architecture=sm_{capability}".encode(), b"--std=c++17"]
        _nvrtc(nvrtc.nvrtcCompileProgram(program, len(flags), flags))
        cubin = b" " * int(_nvrtc(nvrtc.nvrtcGetCUBINSize(program)))
        _nvrtc(nvrtc.nvrtcGetCUBIN(program, cubin))
        _nvrtc(nvrtc.nvrtcDestroyProgram(program))
    except (ImportError, RuntimeError) as error:  # cuda-bindings raises RuntimeError where the library is missing
        raise NoKernels(f"CUDA's compiler NVRTC does not work here ({error})", _nvrtc_anew()) from error
    return cubin


def _nvrtc_anew() -> str:
    """What installs NVRTC, of the CUDA that this ONNX Runtime was built for."""
    cuda = built_for() or 13
    return f"pip install --upgrade 'cuda-bindings=={cuda}.*' 'cuda-toolkit[nvrtc]=={cuda}.*'"


def _nvrtc(result: tuple[Any, ...]) -> Any:
    status, *given = result
    if int(status) != 0:
        raise RuntimeError(status.name)
    return given[0] if given else None
