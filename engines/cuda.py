"""Device memory, streams and captured launches through cuda-bindings. The status of every call is checked."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import BackendUnavailable, EngineError, OutOfMemory
from .spec import Array

_REMEDY = "pip install cuda-bindings"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The GPU that this process uses. `driver` is the driver's version, such as "580.95.05"."""

    name: str
    compute_capability: str
    driver: str
    memory: int


def _api() -> Any:
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendUnavailable(f"cuda-bindings cannot be imported ({error})", _REMEDY) from error
    return runtime


def call(name: str, *arguments: Any) -> Any:
    """`cudaNAME(*arguments)`: what it gives beside the status, None where that is nothing, a list of several.

    Raises:
        EngineError: the status is not success.
    """
    status, *given = getattr(_api(), f"cuda{name}")(*arguments)
    if int(status) != 0:
        message = f"CUDA: {name} failed with {status.name}"
        if status.name == "cudaErrorMemoryAllocation":
            raise OutOfMemory(f"{message}; take a smaller --size or --batch-size")
        raise EngineError(message)
    return given if len(given) > 1 else given[0] if given else None


def find_gpu() -> Gpu:
    """The first GPU that the process sees.

    Raises:
        BackendUnavailable: there is no driver or no GPU, or the driver is older than cuda-bindings.
    """
    try:
        found = call("GetDeviceCount")
    except EngineError as error:
        remedy = "install or update the NVIDIA driver, or take --backend ort --device cpu"
        raise BackendUnavailable(f"no NVIDIA GPU that works ({error})", remedy) from error
    if not found:
        raise BackendUnavailable("no NVIDIA GPU on this machine", "take --backend ort --device cpu")
    properties = call("GetDeviceProperties", 0)
    return Gpu(
        name=properties.name.decode(),
        compute_capability=f"{properties.major}.{properties.minor}",
        driver=_driver(),
        memory=properties.totalGlobalMem,
    )


def _driver() -> str:
    """Of NVML, which comes with the driver; else the CUDA version that the driver was made for."""
    text = ctypes.create_string_buffer(96)
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() == 0 and nvml.nvmlSystemGetDriverVersion(text, len(text)) == 0:
            return text.value.decode()
    except (OSError, AttributeError):
        pass
    version = call("DriverGetVersion")
    return f"CUDA {version // 1000}.{version % 1000 // 10}"


def free_memory() -> int:
    """Bytes of the GPU's memory that nobody has taken."""
    free, _ = call("MemGetInfo")
    return int(free)


class DeviceMemory:
    """Memory on the GPU, given back with the last reference to it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.address = int(call("Malloc", max(size, 1)))
        self._finalizer = weakref.finalize(self, _api().cudaFree, self.address)


class HostMemory:
    """Memory of the host in pages that stay where they are, so that copies run beside the CPU."""

    def __init__(self, size: int) -> None:
        self.address = int(call("MallocHost", max(size, 1)))
        self._finalizer = weakref.finalize(self, _api().cudaFreeHost, self.address)
        raw = (ctypes.c_byte * size).from_address(self.address)
        self.content: Array = np.ctypeslib.as_array(raw)

    def send(self, size: int, address: int, stream: Stream) -> None:
        """Copy its first bytes to the GPU."""
        call("MemcpyAsync", address, self.address, size, _api().cudaMemcpyKind.cudaMemcpyHostToDevice, stream.handle)


class Staging:
    """A host array from which copies run beside the CPU, and its twin on the GPU."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.device = DeviceMemory(size)
        self._memory = HostMemory(size)
        self.host: Array = self._memory.content.view(dtype).reshape(shape)

    def send(self, array: Array, stream: Stream) -> None:
        """Copy `array`, converted, to the GPU."""
        np.copyto(self.host, array, casting="unsafe")
        self._memory.send(self.device.size, self.device.address, stream)

    def take(self, other: Staging, stream: Stream) -> None:
        """Copy what `other` has on the GPU, of the same size, to there."""
        kind = _api().cudaMemcpyKind.cudaMemcpyDeviceToDevice
        call("MemcpyAsync", self.device.address, other.device.address, self.device.size, kind, stream.handle)

    def fetch(self, stream: Stream) -> None:
        """Copy from the GPU; `host` holds it once the stream is through."""
        kind = _api().cudaMemcpyKind.cudaMemcpyDeviceToHost
        call("MemcpyAsync", self._memory.address, self.device.address, self.device.size, kind, stream.handle)


class Stream:
    """What is put into it runs in turn."""

    def __init__(self) -> None:
        self.handle = call("StreamCreateWithFlags", _api().cudaStreamNonBlocking)
        self._finalizer = weakref.finalize(self, _api().cudaStreamDestroy, self.handle)

    def wait(self) -> None:
        """Until everything in it is done."""
        call("StreamSynchronize", self.handle)

    def after(self, event: Event) -> None:
        """What is put into it from now on waits for `event`."""
        call("StreamWaitEvent", self.handle, event.handle, 0)

    def capture(self, launch: Callable[[], None]) -> Launches:
        """What `launch` puts into the stream, to be launched as one; nothing runs now."""
        with self._capturing() as graph:
            launch()
        return Launches(graph[0])

    @contextlib.contextmanager
    def _capturing(self) -> Iterator[list[Any]]:
        graph: list[Any] = []
        call("StreamBeginCapture", self.handle, _api().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            yield graph
        except BaseException:
            _api().cudaStreamEndCapture(self.handle)  # it failed already; this takes the stream out of capturing
            raise
        graph.append(call("StreamEndCapture", self.handle))


class Event:
    """A place in a stream. One that was never recorded is over."""

    def __init__(self) -> None:
        self.handle = call("EventCreateWithFlags", _api().cudaEventDisableTiming)
        self._finalizer = weakref.finalize(self, _api().cudaEventDestroy, self.handle)

    def record(self, stream: Stream) -> None:
        """It is over once all is done that is in `stream` now."""
        call("EventRecord", self.handle, stream.handle)

    def wait(self) -> None:
        """Until it is over."""
        call("EventSynchronize", self.handle)


class Launches:
    """A captured graph of launches."""

    def __init__(self, graph: Any) -> None:
        try:
            self.handle = call("GraphInstantiate", graph, 0)
        finally:
            _api().cudaGraphDestroy(graph)
        self._finalizer = weakref.finalize(self, _api().cudaGraphExecDestroy, self.handle)

    def __call__(self, stream: Stream) -> None:
        """Put them into the stream."""
        call("GraphLaunch", self.handle, stream.handle)
