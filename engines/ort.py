"""ONNX Runtime, on the CPU or through another of its execution providers."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import onnxruntime

from .base import Building, Engine, HostEngine
from .errors import BackendUnavailable, BundleError, EdgeDiffusionError, one_line
from .onnx_relocate import loadable
from .ort_arena import NotTaken
from .ort_cuda import CPU, OnCpu, find_driver, open_session
from .ort_device import DeviceRun, failed, on_device
from .ort_kernels import DIALECT, NoKernels, prepare
from .ort_kernels import open_session as open_with_kernels
from .ort_tensorrt import PROVIDERS
from .ort_tensorrt import open_session as open_provider
from .packed import File
from .spec import Array, GraphSpec


class Slower(UserWarning):
    """What would make the GPU faster is missing."""


Run = Callable[[Mapping[str, Array]], dict[str, Array]]


def open_engine(
    model: File, spec: GraphSpec, *, device: str, dialects: Mapping[str, File], building: Building
) -> Engine:
    """See `registry.open_engine`.

    Warns:
        OnCpu: `device` is "auto", and there is a GPU that could be used if something were mended.
        Slower: the GPU is used, but without our own kernels.
    """
    onnxruntime.set_default_logger_severity(4)
    if device in PROVIDERS:
        opener = functools.partial(open_provider, device, building=building)
        return on_device(lambda: _open(model, spec, opener, _on_cuda))
    if device != "cpu":
        try:
            engine = _open_on_cuda(model, spec, dialects, building.precision)
        except BackendUnavailable as error:
            if device != "auto":
                raise
            if find_driver() is not None:
                warnings.warn(OnCpu(f"on the CPU, since on the GPU: {error}"), stacklevel=2)
            else:
                building.says(f"device auto: cpu, since {error.reason}")
        else:
            if device == "auto":
                building.says("device auto: cuda, the best there is, and it works here")
            return engine
    if (dialect := dialects.get("cpu")) is not None:
        return _open(dialect, spec, _open_widened, _on_cpu)
    return _open(model, spec, _open_on_cpu, _on_cpu)


def _open(
    model: File,
    spec: GraphSpec,
    open_session: Callable[[Any, onnxruntime.SessionOptions], onnxruntime.InferenceSession],
    runner: Callable[[onnxruntime.InferenceSession, GraphSpec], Run],
) -> Engine:
    session = None
    try:
        with contextlib.suppress(NotTaken):
            session = open_session(model, _options())
        if session is None:  # now that the first one is gone
            session = open_session(model, _options())
    except EdgeDiffusionError:
        raise
    except Exception as error:
        raise BundleError(f"{model}: ONNX Runtime cannot load it ({one_line(error)}); export it again") from error
    inputs, outputs = ([node.name for node in nodes] for nodes in (session.get_inputs(), session.get_outputs()))
    spec.check_names(model, inputs, outputs)
    return HostEngine(spec, runner(session, spec))


def _open_on_cuda(model: File, spec: GraphSpec, dialects: Mapping[str, File], precision: str) -> Engine:
    if (own := dialects.get(DIALECT)) is not None:
        try:
            prepare()
            return on_device(lambda: _open(own, spec, open_with_kernels, _on_cuda))
        except NoKernels as error:
            warnings.warn(Slower(f"slower than it could be: {error}"), stacklevel=2)
    opener = functools.partial(open_session, exact=precision == "float32")
    return on_device(lambda: _open(dialects.get("cuda", model), spec, opener, _on_cuda))


def _open_on_cpu(model: File, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(loadable(model, options), options, providers=[CPU])


def _open_widened(model: File, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Of the CPU's dialect: weights in 8 bits are widened once, which it needs for those that it cuts in halves."""
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return _open_on_cpu(model, options)


def _on_cpu(session: onnxruntime.InferenceSession, spec: GraphSpec) -> Run:
    return functools.partial(_run, session, spec)


def _on_cuda(session: onnxruntime.InferenceSession, spec: GraphSpec) -> Run:
    return DeviceRun(session, spec, "cuda")


def _options() -> onnxruntime.SessionOptions:
    """Measured with a 9M-parameter UNet (2x4x16x16) and a VAE decoder on 2 cores, ONNX Runtime 1.32.

    All optimisations: 33 ms a UNet call against 36 with the basic ones, for 45 ms more when the session is made.
    Memory patterns: no faster, and decoding 512 x 512 peaks at 697 MB with them, 409 MB without.
    Spinning threads: for 200 microseconds at most a call takes 34 ms, as it does without a limit, but where other
    programs run too it stays at 35 ms; without a limit it takes 38 to 200 ms there, for up to twice the CPU time.
    Weights in 8 bits are widened in each call, for 39 MB of memory and 49 ms of CPU time a UNet call on one thread, or
    once (`_open_widened`), for 64 MB and 39 ms; in float32 it is 78 MB and 39 ms.
    """
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False
    options.intra_op_num_threads = _threads()
    options.add_session_config_entry("session.intra_op.spin_duration_us", "200")
    return options


def _threads() -> int:
    """0, which is a thread a physical core; ONNX Runtime does not see that a process is held to fewer (taskset)."""
    if sys.platform != "linux":
        return 0
    allowed = len(os.sched_getaffinity(0))
    return allowed if allowed < (os.cpu_count() or 1) else 0


def _run(session: onnxruntime.InferenceSession, spec: GraphSpec, feeds: Mapping[str, Array]) -> dict[str, Array]:
    names = [output.name for output in spec.outputs]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:
        raise failed(spec.name, "cpu", error) from error
