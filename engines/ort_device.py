"""ONNX Runtime on a device with memory of its own: values keep their place there, and launches are replayed."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import onnxruntime

from .base import unsent
from .errors import EngineError, OutOfMemory, one_line
from .ort_arena import ARENA
from .spec import Array, GraphSpec, TensorSpec

# Sets of input shapes whose launches are captured: each keeps its inputs and outputs on the device, and its graph of
# launches, which ONNX Runtime cannot be told to forget; it has one more after memory ran out. Further ones run without.
MAX_KEPT = 8
_GRAPH_ID = "gpu_graph_id"  # of RunOptions: launches are captured under this number, and not at all for -1
Shapes = tuple[tuple[int, ...], ...]
Result = TypeVar("Result")

# Nothing may allocate or copy while launches are captured, whatever thread it is in: ONNX Runtime captures in CUDA's
# global mode. So one thing at a time happens on the device: open, run, free.
_ALONE = threading.Lock()
# A session keeps handles of cuBLAS and cuDNN and captured launches for each thread that runs it, until it is freed. So
# two threads run sessions: the main one, which a step of the loop would take 0.1 ms to leave, and one for all others.
_THREAD = ThreadPoolExecutor(1, "edgediffusion-device")


def on_device(function: Callable[[], Result]) -> Result:
    """What `function` returns, called when what the device was given before is done."""
    if threading.current_thread() is threading.main_thread():
        return _alone(function)
    return _THREAD.submit(_alone, function).result()


def _alone(function: Callable[[], Result]) -> Result:
    with _ALONE:
        return function()


@dataclass
class _Buffers:
    """On the device, for one set of input shapes. `sent` are the arrays that were copied there last.

    Launches were captured in the arena's `captured` generation.
    """

    binding: onnxruntime.IOBinding
    options: onnxruntime.RunOptions
    inputs: dict[str, onnxruntime.OrtValue]
    outputs: dict[str, onnxruntime.OrtValue]
    sent: dict[str, Array] = field(default_factory=dict)
    captured: int = -1


@dataclass
class _Held:
    """What lies on the device."""

    session: Any
    buffers: dict[Shapes, _Buffers] = field(default_factory=dict)

    def free(self) -> None:
        self.buffers.clear()
        self.session = None
        ARENA.closed()


class DeviceRun:
    """Host arrays to host arrays by a session whose provider works on `device`, such as "cuda".

    The first run of a set of shapes shows what the outputs are like. From the second on inputs are copied into buffers
    that stay where they are, so that the launches can be captured once and replayed, where the provider was told to;
    outputs are copied into fresh arrays.
    """

    def __init__(self, session: onnxruntime.InferenceSession, spec: GraphSpec, device: str) -> None:
        self._held = _Held(session)
        ARENA.opened()
        self._spec = spec
        self._device = device
        self._graph_ids = itertools.count()
        weakref.finalize(self, _free, self._held).atexit = False  # the process takes all with it

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once.

        Raises:
            EngineError: it fails: out of memory, say.
        """
        return on_device(lambda: self._run(feeds))

    def _run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        shapes = tuple(feeds[tensor.name].shape for tensor in self._spec.inputs)
        buffers, session = self._held.buffers.get(shapes), self._held.session
        try:
            if buffers is None:
                results = self._run_first(session, feeds, shapes)
                ARENA.ran()
                return results
            _send(buffers, feeds)
            captured = buffers.captured == ARENA.generation
            if not captured:
                buffers.options.add_run_config_entry(_GRAPH_ID, str(next(self._graph_ids)))
                buffers.captured = ARENA.generation
            session.run_with_iobinding(buffers.binding, buffers.options)
            if not captured:
                ARENA.ran()
            return dict(zip(buffers.outputs, buffers.binding.copy_outputs_to_cpu(), strict=True))
        except Exception as error:
            self._held.buffers.pop(shapes, None)
            raise lacking(failed(self._spec.name, self._device, error)) from error

    def _run_first(
        self, session: onnxruntime.InferenceSession, feeds: Mapping[str, Array], shapes: Shapes
    ) -> dict[str, Array]:
        """A run that captures nothing, and the buffers for the next ones."""
        binding, options = session.io_binding(), onnxruntime.RunOptions()
        inputs = {tensor.name: self._empty(tensor, feeds[tensor.name].shape) for tensor in self._spec.inputs}
        buffers = _Buffers(binding, options, inputs, {})
        _send(buffers, feeds)
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for tensor in self._spec.outputs:
            binding.bind_output(tensor.name, self._device)
        options.add_run_config_entry(_GRAPH_ID, "-1")
        session.run_with_iobinding(binding, options)
        arrays = binding.copy_outputs_to_cpu()
        results = {tensor.name: array for tensor, array in zip(self._spec.outputs, arrays, strict=True)}
        if len(self._held.buffers) < MAX_KEPT:
            binding.clear_binding_outputs()
            for tensor in self._spec.outputs:
                buffers.outputs[tensor.name] = self._empty(tensor, results[tensor.name].shape)
                binding.bind_ortvalue_output(tensor.name, buffers.outputs[tensor.name])
            self._held.buffers[shapes] = buffers
        return results

    def _empty(self, tensor: TensorSpec, shape: tuple[int, ...]) -> onnxruntime.OrtValue:
        with ARENA.keeping():
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(tensor.dtype).type, self._device)


_NO_MEMORY = (
    "allocate memory",
    "out of memory",
    "cuda failure 2:",
    "bad allocation",
    "bad_alloc",
    "cudaexternalallocator",
)


def failed(name: str, device: str, error: Exception) -> EngineError:
    """What to raise when `name` fails on `device`."""
    reason = one_line(error)
    if any(words in reason.lower() for words in _NO_MEMORY):
        return OutOfMemory(
            f"{name}: out of memory on {device}; take a smaller picture, fewer at once, or free what else is there "
            f"({reason})"
        )
    return EngineError(f"{name}: ONNX Runtime failed on {device} ({reason})")


def lacking(error: EngineError) -> EngineError:
    """`error`, after memory was given back if it ran out."""
    if isinstance(error, OutOfMemory):
        ARENA.exhausted()
    return error


def _send(buffers: _Buffers, feeds: Mapping[str, Array]) -> None:
    for name, array in unsent(feeds, buffers.sent):
        buffers.inputs[name].update_inplace(np.ascontiguousarray(array))


def _free(held: _Held) -> None:
    with contextlib.suppress(RuntimeError):  # the thread is gone when the process ends
        _THREAD.submit(_alone, held.free)
