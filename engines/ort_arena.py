"""The GPU's memory for all sessions of ONNX Runtime in this process: one arena (`kernels/arena.c`), not one for each.

Sessions run one after the other, so they work in the same memory. What one keeps lies elsewhere: captured launches
write where they once did, whatever is there since.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import numpy as np
import onnxruntime

from .cuda import HostMemory, Stream
from .errors import EngineError, OutOfMemory, one_line
from .ort_library import load_library
from .spec import Array

_CODES = {"i": 0, "u": 1, "f": 2}  # of dtypes, by NumPy's kind, in DLPack
_NAME = b"dltensor"  # of a capsule; it is not copied


class NotTaken(EngineError):
    """ONNX Runtime reads weights from their file though they were given to it; it is not asked again."""


class Arena:
    """Does nothing until it is `shared`, and where that cannot be: then each session has an arena of its own.

    To be used by one thread at a time. Launches that were captured in an earlier `generation` are void.
    `lacks` says why a session has an arena of its own, or reads its weights itself; empty where none did.
    """

    def __init__(self) -> None:
        self.generation = 0
        self.takes_weights = False
        self.lacks = ""
        self._library: ctypes.CDLL | None = None
        self._tried = False
        self._sessions = 0

    def share(self, options: onnxruntime.SessionOptions) -> None:
        """Have a session use it. The driver and a GPU are there."""
        if not self._tried:
            self._tried = True
            try:
                self._library = _registered()
                HostMemory(1), Stream(), self.like(np.zeros(1, np.float16))  # what giving weights takes
                self.takes_weights = True
            except Exception as error:  # whatever it is, ONNX Runtime does without
                self.lacks = one_line(error)
        if self._library is not None:
            options.add_session_config_entry("session.use_env_allocators", "1")

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """What is allocated in this block is kept beyond a run."""
        if self._library is None:
            yield
            return
        self._library.edgediffusion_keep(1)
        try:
            yield
        finally:
            self._library.edgediffusion_keep(0)

    def like(self, array: Array) -> onnxruntime.OrtValue:
        """Room for `array` on the GPU, in memory that goes with whoever uses it; only where it is `shared`.

        Raises:
            OutOfMemory: there is none.
        """
        assert self._library is not None
        shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        code, bits = _CODES[array.dtype.kind], 8 * array.itemsize
        with self.keeping():
            tensor = self._library.edgediffusion_tensor(ctypes.c_size_t(array.nbytes), code, bits, array.ndim, shape)
        if not tensor:
            raise OutOfMemory("its weights do not fit on the GPU; free what else is there")
        return onnxruntime.OrtValue.from_dlpack(_capsule(tensor, _NAME, None))

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """A block in which values are let go that a session is to hold, too; what none holds is given back.

        Raises:
            NotTaken: it does not.
        """
        kept = self._kept()
        yield
        self._trim()
        if self._kept() != kept:
            self.takes_weights, self.lacks = False, "ONNX Runtime does not take weights that are on the GPU"
            raise NotTaken(self.lacks)

    def _kept(self) -> int:
        return 0 if self._library is None else self._library.edgediffusion_kept()

    def opened(self) -> None:
        """There is one session more."""
        self._sessions += 1

    def closed(self) -> None:
        """There is one session less, and its memory is free."""
        self._sessions -= 1
        self._trim()

    def ran(self) -> None:
        """After a run that was no replay: what captured launches may write to is not to be where it left something."""
        if self._library is not None and self._library.edgediffusion_settle():
            self.generation += 1

    def exhausted(self) -> None:
        """After memory ran out: what no session keeps is given back, though captured launches may write there."""
        if self._trim(graphs=False):
            self.generation += 1

    def _trim(self, *, graphs: bool = True) -> int:
        return 0 if self._library is None else self._library.edgediffusion_trim(graphs and self._sessions > 0)


ARENA = Arena()
_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", ctypes.pythonapi)
)


def _registered() -> ctypes.CDLL:
    """The library, whose arena ONNX Runtime takes from now on where a session is told so."""
    library = load_library()
    library.edgediffusion_kept.restype = ctypes.c_size_t
    library.edgediffusion_tensor.restype = ctypes.c_void_p
    if status := library.edgediffusion_arena():
        raise RuntimeError(f"CUDA's driver says {status}")
    functions = {"gpu_external_alloc": library.edgediffusion_allocate, "gpu_external_free": library.edgediffusion_free}
    addresses = {name: str(ctypes.cast(function, ctypes.c_void_p).value) for name, function in functions.items()}
    kind, memory = onnxruntime.OrtAllocatorType.ORT_DEVICE_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
    onnxruntime.create_and_register_allocator_v2(
        "CUDAExecutionProvider",
        onnxruntime.OrtMemoryInfo("Cuda", kind, 0, memory),
        addresses,
        onnxruntime.OrtArenaCfg({}),
    )
    return library
