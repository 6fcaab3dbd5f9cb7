"""From a graph to a TensorRT plan."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .base import Report
from .cuda import free_memory
from .errors import BackendUnavailable, BundleError, EngineError, OutOfMemory, UsageError, one_line
from .files import replacing
from .onnx_scales import with_scales
from .profile import Profile
from .spec import GraphSpec
from .tensorrt_versions import TensorRT

T = TypeVar("T")
_SINGLE, _HALF = "float32", "float16"
# Bytes of the device's memory. With 600 MiB left TensorRT 8.6 did not start on an H100, or could not build, and did not
# say why.
_START = 1 << 30
# The builder's flags for options that are on or off.
_FLAGS = {
    "weight_stripped": "STRIP_PLAN",
    "weight_streaming": "WEIGHT_STREAMING",
    "refit": "REFIT",
    "version_compatible": "VERSION_COMPATIBLE",
}


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build; what is left out is TensorRT's choice.

    `optimization_level` is 0 to 5, `workspace` in bytes. `weight_stripped` leaves the weights out of the plan, they
    are read from the bundle when it is opened; with `weight_streaming` those that do not fit into the GPU's memory come
    from the host's in each run; `refit` lets them be replaced. `version_compatible` engines load in
    later versions too, `hardware_compatible` ones on any GPU since Ampere. `compute_capability` names GPUs to build
    for that are not here. `timing_cache` keeps what kernels took, for the next build on the same GPU.
    """

    optimization_level: int | None = None
    workspace: int | None = None
    timing_cache: Path | None = None
    weight_stripped: bool = False
    weight_streaming: bool = False
    refit: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute_capability: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """What leaves a mark on the plan and is told nowhere else, for `Recipe.flags`."""
        elsewhere = ("timing_cache", "compute_capability")
        chosen = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]
        marks = [(n, value) for n, value in chosen if not (value is None or value is False or n in elsewhere)]
        return tuple(name if value is True else f"{name}={value}" for name, value in marks)

    def check(self, tensorrt: TensorRT) -> None:
        """Raise `UsageError` where this TensorRT cannot follow an option."""
        for field in dataclasses.fields(self):
            if getattr(self, field.name) != field.default and field.name not in tensorrt.version.options:
                raise UsageError(f"{tensorrt.version.label} has no --{field.name.replace('_', '-')}; leave it out")
        if self.optimization_level is not None and not 0 <= self.optimization_level <= 5:
            raise UsageError(f"--optimization-level {self.optimization_level}, wanted 0 to 5")
        for capability in self.compute_capability:
            if tensorrt.compute_capability(capability) is None:
                known = ", ".join(tensorrt.known_compute_capabilities)
                raise UsageError(f"--compute-capability {capability}, known: {known}")


def build_plan(
    tensorrt: TensorRT,
    model: Path,
    spec: GraphSpec,
    profiles: Sequence[Profile],
    precision: str,
    options: BuildOptions,
    report: Report = lambda fraction: None,
    stop: threading.Event | None = None,
) -> bytes:
    """Build the graph in the file `model` for these profiles, and return the plan.

    One profile of fixed sizes gives a static engine. `report` is called with the fraction that is done: at the start,
    at the end, and between where this one can be watched, from other threads. Such a one `stop` stops, and so does a
    keyboard interrupt.

    Raises:
        UsageError: see `BuildOptions.check`; or options that exclude one another.
        BundleError: TensorRT cannot read the graph, or it is not that of `spec`.
        EngineError: the build fails: out of memory, say.
    """
    options.check(tensorrt)
    stop = stop or threading.Event()
    trt, has_progress = tensorrt.module, tensorrt.version.has_progress

    def work() -> bytes:
        logger = make_logger(trt)
        builder = start(tensorrt, trt.Builder, logger)
        network, _parser = _parse(tensorrt, builder, logger, model)  # the parser owns the weights that the build reads
        inputs = [network.get_input(i).name for i in range(network.num_inputs)]
        spec.check_names(model, inputs, [network.get_output(i).name for i in range(network.num_outputs)])
        config = builder.create_builder_config()
        _fix_or_add_profiles(builder, config, network, spec, profiles)
        _configure(tensorrt, config, precision, options)
        report(0.0)
        if has_progress:
            config.progress_monitor = _monitor(trt, report, stop)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise _why_failed(spec.name, logger.errors, options)
        if options.timing_cache is not None:
            _keep_timings(config, options.timing_cache)
        report(1.0)
        return bytes(memoryview(plan))

    return in_a_thread(work, stop if has_progress else None)


def make_logger(trt: Any) -> Any:
    """Keeps errors, for the one line that tells of them; says nothing itself.

    That a kernel was passed over for want of memory is a warning to TensorRT, and where none is left the error has no
    word of it.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.ERROR or out_of_memory([message]):
                self.errors.append(one_line(message))

    return Logger()


def start(tensorrt: TensorRT, kind: Any, logger: Any) -> Any:
    """A `Builder` or `Runtime`.

    Raises:
        BackendUnavailable: TensorRT does not start here.
        OutOfMemory: too little of the device's memory is free.
    """
    try:
        return kind(logger)
    except TypeError:  # what the binding of a C++ function that returns nothing raises
        told = "; ".join(logger.errors[-2:])
        full = "failure with error: 2." in told if told else _is_full()  # cudaErrorMemoryAllocation
        told = told or "it does not say why"
        if full:
            reason = f"{tensorrt.version.label} does not start: out of device memory ({told}); free some of it"
            raise OutOfMemory(reason) from None
        remedy = "does the NVIDIA driver fit it? see: edgediffusion doctor"
        if "digest" in told.lower():  # its builder takes that of its kernels
            package = f"{tensorrt.backend.replace('_', '-')}=={tensorrt.number}"
            remedy = f"a file of it was altered: pip install --force-reinstall {package}"
        raise BackendUnavailable(f"{tensorrt.version.label} does not start ({told})", remedy) from None


def _is_full() -> bool:
    """Whether the device has too little memory to start in."""
    try:
        return free_memory() < _START
    except OutOfMemory:  # CUDA takes some itself to tell
        return True
    except (BackendUnavailable, EngineError):
        return False


def _parse(tensorrt: TensorRT, builder: Any, logger: Any, model: Path) -> tuple[Any, Any]:
    trt, flags = tensorrt.module, 0
    kinds = trt.NetworkDefinitionCreationFlag
    if tensorrt.version.strongly_typed:
        flags |= 1 << int(kinds.STRONGLY_TYPED)
    else:
        flags |= 1 << int(kinds.EXPLICIT_BATCH)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if tensorrt.version.reads_axes:
        parsed = parser.parse_from_file(str(model))
    else:
        parsed = parser.parse(with_scales(model), str(model))  # the path says where the weights are
    if not parsed:
        reasons = [parser.get_error(i) for i in range(parser.num_errors)]
        told = "; ".join(f"node {reason.node()}: {reason.desc()}" for reason in reasons) or "; ".join(logger.errors)
        raise BundleError(f"{model}: {tensorrt.version.label} cannot read it ({told}); export it again")
    return network, parser


def _fix_or_add_profiles(builder: Any, config: Any, network: Any, spec: GraphSpec, profiles: Sequence[Profile]) -> None:
    inputs = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    if len(profiles) == 1 and profiles[0].is_static:
        for tensor in spec.inputs:
            inputs[tensor.name].shape = profiles[0].shapes(tensor)[0]
        return
    for profile in profiles:
        added = builder.create_optimization_profile()
        for tensor in spec.inputs:
            if any(isinstance(dimension, str) for dimension in tensor.shape):
                added.set_shape(tensor.name, *profile.shapes(tensor))
        config.add_optimization_profile(added)


def _configure(tensorrt: TensorRT, config: Any, precision: str, options: BuildOptions) -> None:
    trt = tensorrt.module
    for name, flag in _FLAGS.items():
        if getattr(options, name):
            config.set_flag(getattr(trt.BuilderFlag, flag))
            if not config.get_flag(getattr(trt.BuilderFlag, flag)):
                option = name.replace("_", "-")
                raise UsageError(f"{tensorrt.version.label} takes no --{option} beside the other options; leave it out")
    if precision == _HALF and not tensorrt.version.strongly_typed:
        config.set_flag(trt.BuilderFlag.FP16)
    if precision == _SINGLE:
        config.clear_flag(trt.BuilderFlag.TF32)  # on unless told; it keeps 10 of the 23 bits
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.compute_capability:
        config.num_compute_capabilities = len(options.compute_capability)
        for i, capability in enumerate(options.compute_capability):
            config.set_compute_capability(tensorrt.compute_capability(capability), i)
    if tensorrt.version.needs_gpu:
        config.set_tactic_sources(0)  # cuBLAS and cuDNN, which nobody need install for TensorRT's own kernels
    if options.timing_cache is not None:
        config.set_timing_cache(_timings(config, options.timing_cache), ignore_mismatch=False)


def _monitor(trt: Any, report: Report, stop: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Phases lie within one another; a phase counts for one step of the one around it."""

        def __init__(self) -> None:
            super().__init__()
            self.phases: dict[str, tuple[str | None, int, int]] = {}  # name -> around it, steps, steps done
            self.done = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.phases[name] = (parent or None, max(steps, 1), 0)

        def step_complete(self, name: str, step: int) -> bool:
            parent, steps, _ = self.phases[name]
            self.phases[name] = (parent, steps, step + 1)
            self.done = max(self.done, self._fraction(None))
            report(self.done)
            return not stop.is_set()

        def phase_finish(self, name: str) -> None:
            self.phases.pop(name, None)

        def _fraction(self, around: str | None) -> float:
            inside = [
                (min(done + self._fraction(name), steps)) / steps
                for name, (parent, steps, done) in self.phases.items()
                if parent == around
            ]
            return min(max(inside, default=0.0), 1.0)

    return Monitor()


def in_a_thread(work: Callable[[], T], stop: threading.Event | None = None) -> T:
    """What `work` returns, while this thread waits for a keyboard interrupt, which sets `stop` where that ends `work`.

    An interrupt comes between the main thread's own steps, and a build is none; in a callback of TensorRT's, such as
    its words to the log are, it would be lost. Nor does a wait without an end hear of it: NVRTC 11 and 12, one of which
    is in TensorRT 8.6, have the system's calls go on after a signal once they have compiled (SA_RESTART).
    """
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.1)
    except KeyboardInterrupt:
        if stop is not None:
            stop.set()
            thread.join()
        raise
    if failure:
        raise failure.pop()  # a reference left here would keep what its traceback holds
    return result[0]


def _why_failed(name: str, errors: Sequence[str], options: BuildOptions) -> EngineError:
    told = "; ".join(errors[-3:]) or "it does not say why"
    little = any("insufficient workspace" in error for error in errors)
    if little and options.workspace is not None:
        return EngineError(
            f"{name}: no kernel does with so little memory ({told}); take a larger --workspace, or leave it out"
        )
    without_a_word = any("cuda runtime" in error.lower() for error in errors) and _is_full()
    if little or out_of_memory(errors) or without_a_word:  # the workspace is all of the device's memory unless told
        return OutOfMemory(
            f"{name}: out of device memory while building ({told}); take a smaller --workspace, --batch or --shapes"
        )
    if "libnvinfer_lean" in told:
        return EngineError(
            f"{name}: TensorRT's lean runtime is not installed ({told}); pip install a tensorrt-lean of its version, "
            "or leave out --version-compatible"
        )
    return EngineError(f"{name}: TensorRT cannot build it ({told})")


def out_of_memory(errors: Sequence[str]) -> bool:
    """Whether that is what TensorRT tells."""
    return any("outofmemory" in error.lower().replace(" ", "") for error in errors)


def _timings(config: Any, path: Path) -> Any:
    """A cache of what the file holds, if there is one."""
    return config.create_timing_cache(path.read_bytes() if path.exists() else b"")


def _keep_timings(config: Any, path: Path) -> None:
    """Add what this build has measured to the file, where other builds may have written since."""
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        kept = _timings(config, path)
        kept.combine(config.get_timing_cache(), ignore_mismatch=False)
        with replacing(path) as partial:
            partial.write_bytes(memoryview(kept.serialize()))
