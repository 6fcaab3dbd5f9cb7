"""TensorRT and CUDA without a GPU: what we call of both, with the checks that they make.

A plan is JSON. Device memory is host memory that only copies and engines may touch. What is put into a stream runs when
somebody waits for it, as late as the real one could.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import enum
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edgediffusion.engines.onnx_file import read_onnx
from edgediffusion.engines.spec import Array, TensorSpec

Function = Callable[[Mapping[str, Array]], Mapping[str, Array]]
TYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32"}
BY_NAME = {name: np.dtype(dtype) for dtype, name in TYPES.items()}


class FakeCuda:
    """In place of `cuda.bindings.runtime`. `fail` maps a function's name to the status that its next call gives."""

    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaMemcpyKind = enum.IntEnum(
        "cudaMemcpyKind", "cudaMemcpyHostToDevice cudaMemcpyDeviceToHost cudaMemcpyDeviceToDevice"
    )
    cudaStreamCaptureMode = enum.IntEnum("cudaStreamCaptureMode", "cudaStreamCaptureModeThreadLocal")

    class Status(enum.IntEnum):
        cudaSuccess = 0
        cudaErrorMemoryAllocation = 2
        cudaErrorInsufficientDriver = 35
        cudaErrorStreamCaptureUnsupported = 900

    def __init__(self) -> None:
        self.fail: dict[str, int] = {}
        self.devices = 1
        self.free = 60 << 30
        self.buffers: dict[int, Any] = {}
        self.device: dict[int, int] = {}  # address -> size
        self.capturing: list[Callable[[], None]] | None = None
        self.calls: list[str] = []
        self.streams: list[list[Callable[[], Any]]] = []  # all that was ever put into each
        self.done: list[int] = []  # how much of it ran
        self.events: list[tuple[int, int] | None] = []  # the stream and how much of it
        self.peak = 0
        self.void: dict[Callable[[], None], Callable[[], bool]] = {}  # launches of a context: whether it was changed

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def function(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.fail:
                return self.Status(self.fail.pop(name)), *[None][: name not in ("cudaFree",)]
            given = getattr(self, f"_{name.removeprefix('cuda')}")(*arguments)
            given = () if given is None else given if isinstance(given, tuple) else (given,)
            return (self.Status.cudaSuccess, *given)

        if not name.startswith("cuda"):
            raise AttributeError(name)
        return function

    def _GetDeviceCount(self) -> int:
        return self.devices

    def _GetDeviceProperties(self, device: int) -> SimpleNamespace:
        return SimpleNamespace(name=b"NVIDIA H100", major=9, minor=0, totalGlobalMem=80 << 30)

    def _DriverGetVersion(self) -> int:
        return 13000

    def _allocate(self, size: int) -> int:
        buffer = (ctypes.c_byte * size)()
        ctypes.memset(buffer, 0xA5, size)
        address = ctypes.addressof(buffer)
        self.buffers[address] = buffer
        return address

    def _Malloc(self, size: int) -> int:
        address = self._allocate(size)
        self.device[address] = size
        self.peak = max(self.peak, sum(self.device.values()))
        return address

    def _MallocHost(self, size: int) -> int:
        return self._allocate(size)

    def _MemGetInfo(self) -> tuple[int, int]:
        return self.free, 80 << 30

    def _Free(self, address: int) -> None:
        for stream, queue in enumerate(self.streams):  # as the real one, it waits for the GPU
            self._run(stream, len(queue))
        del self.buffers[address], self.device[address]

    def _FreeHost(self, address: int) -> None:
        for stream, queue in enumerate(self.streams):
            self._run(stream, len(queue))
        del self.buffers[address]

    def _MemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        kinds = self.cudaMemcpyKind
        assert (target in self.device) == (kind != kinds.cudaMemcpyDeviceToHost)
        assert (source in self.device) == (kind != kinds.cudaMemcpyHostToDevice)
        self._put(stream, lambda: ctypes.memmove(target, source, size))

    def _put(self, stream: int, work: Callable[[], Any]) -> None:
        """Into a stream, where it waits until somebody waits for it."""
        if self.capturing is not None:
            self.capturing.append(work)
        else:
            self.streams[stream].append(work)

    def _run(self, stream: int, count: int) -> None:
        """What is in a stream, up to the first `count` that were ever put into it."""
        while self.done[stream] < count:
            self.streams[stream][self.done[stream]]()
            self.done[stream] += 1

    def _StreamCreateWithFlags(self, flags: int) -> int:
        self.streams.append([])
        self.done.append(0)
        return len(self.streams) - 1

    def _StreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        if (place := self.events[event]) is not None:
            stream_before, count = place
            self._put(stream, lambda: self._run(stream_before, count))

    def _EventCreateWithFlags(self, flags: int) -> int:
        self.events.append(None)
        return len(self.events) - 1

    def _EventDestroy(self, event: int) -> None:
        pass

    def _EventRecord(self, event: int, stream: int) -> None:
        assert self.capturing is None
        self.events[event] = (stream, len(self.streams[stream]))

    def _EventSynchronize(self, event: int) -> None:
        if (place := self.events[event]) is not None:
            self._run(*place)

    def _StreamDestroy(self, stream: int) -> None:
        pass

    def _StreamSynchronize(self, stream: int) -> None:
        assert self.capturing is None
        self._run(stream, len(self.streams[stream]))

    def _StreamBeginCapture(self, stream: int, mode: int) -> None:
        self.capturing = []

    def _StreamEndCapture(self, stream: int) -> Any:
        captured, self.capturing = self.capturing, None
        return captured

    def _GraphInstantiate(self, graph: Any, flags: int) -> Any:
        return graph

    def _GraphDestroy(self, graph: Any) -> None:
        pass

    def _GraphExecDestroy(self, graph: Any) -> None:
        pass

    def _GraphLaunch(self, graph: list[Callable[[], None]], stream: int) -> None:
        for launch in graph:
            assert not self.void[launch](), "captured, and the context was set to other shapes since"
            self._put(stream, launch)

    def view(self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Device memory as an array."""
        assert address in self.device, "memory that was freed, or is the host's"
        size = int(np.prod(shape)) * dtype.itemsize
        assert size <= self.device[address]
        array: Array = np.ctypeslib.as_array((ctypes.c_byte * size).from_address(address)).view(dtype).reshape(shape)
        return array


def lost_in_the_log(start: Callable[..., Any]) -> Callable[..., Any]:
    """`start`, during which an interrupt comes while TensorRT has a word for the log: what is raised there is lost."""

    def speaking(*arguments: Any) -> Any:
        with contextlib.suppress(KeyboardInterrupt):
            _thread.interrupt_main()
            time.sleep(0.2)
        return start(*arguments)

    return speaking


class FakeTensorRT:
    """In place of the module `tensorrt` or `tensorrt_rtx`.

    `functions` are what graphs compute, by their files' names. What a build or context asks for and the version does
    not have is an AttributeError, as in the real one.
    """

    def __init__(self, name: str, version: str, cuda: FakeCuda, functions: Mapping[str, Function]) -> None:
        self.__name__ = name
        self.__version__ = version
        self.cuda = cuda
        self.functions = functions
        self.config: Any = None  # of the last build
        self.engine: Any = None  # the last that was loaded
        self.build_error = ""
        self.build_warning = ""
        self.on_step: Callable[[int], None] = lambda step: None
        old = version.startswith("8")
        self.NetworkDefinitionCreationFlag = SimpleNamespace(**{"EXPLICIT_BATCH" if old else "STRONGLY_TYPED": 0})
        flags = ["TF32", "REFIT", "VERSION_COMPATIBLE", *(["FP16"] if old else ["STRIP_PLAN", "WEIGHT_STREAMING"])]
        self.BuilderFlag = SimpleNamespace(**{flag: flag for flag in flags})
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="ampere+")
        self.ILogger = type("ILogger", (), {"Severity": SimpleNamespace(ERROR=1)})
        if not old:
            self.IProgressMonitor = type("IProgressMonitor", (), {})
            self.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
            self.Refitter = lambda engine, logger: SimpleNamespace(engine=engine, refit_cuda_engine=lambda: True)
        if name == "tensorrt_rtx":
            self.ComputeCapability = SimpleNamespace(SM75=75, SM89=89, SM120=120)

    def function(self, model: str) -> Function:
        """What the graph in this file computes."""
        return self.functions[Path(model).stem]

    def OnnxParserRefitter(self, refitter: Any, logger: Any) -> Any:
        def refit_from_file(model: str) -> bool:
            refitter.engine.refitted = Path(model).exists()
            return bool(refitter.engine.refitted)

        return SimpleNamespace(refit_from_file=refit_from_file)

    def Builder(self, logger: Any) -> Any:
        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(),
            create_builder_config=lambda: FakeConfig(self.__version__),
            create_optimization_profile=lambda: FakeProfile(),
            build_serialized_network=lambda network, config: self._build(network, config, logger),
        )

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        def parse_from_file(model: str) -> bool:
            try:
                spec = read_onnx(Path(model)).spec
            except ValueError:
                return False
            network.model = model
            for kind, tensors in (("input", spec.inputs), ("output", spec.outputs)):
                nodes = [SimpleNamespace(name=tensor.name, spec=tensor, shape=_dynamic(tensor)) for tensor in tensors]
                setattr(network, f"num_{kind}s", len(nodes))
                setattr(network, f"get_{kind}", nodes.__getitem__)
            return True

        error = SimpleNamespace(node=lambda: 3, desc=lambda: "no such operator")

        def parse(content: bytes, model: str) -> bool:
            assert isinstance(content, bytes)
            return parse_from_file(model)

        return SimpleNamespace(parse_from_file=parse_from_file, parse=parse, num_errors=1, get_error=lambda i: error)

    def _build(self, network: Any, config: Any, logger: Any) -> bytes | None:
        self.config = config
        logger.log(2, self.build_warning)
        if self.build_error:
            logger.log(1, self.build_error)
            return None
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        assert config.profiles or not any(-1 in tensor.shape for tensor in inputs), "free sizes want a profile"
        if (monitor := getattr(config, "progress_monitor", None)) is not None and not self._watch(monitor):
            return None
        config.cache.words.add(b"of-%d-builds" % len(config.cache.words))
        plan = {
            "inputs": {tensor.name: [TYPES[tensor.spec.dtype], tensor.shape] for tensor in inputs},
            "outputs": {tensor.name: TYPES[tensor.spec.dtype] for tensor in outputs},
            "profiles": [profile.shapes for profile in config.profiles],
            "model": network.model,
            "stripped": "STRIP_PLAN" in config.flags,
            "version": self.__version__,
        }
        return json.dumps(plan).encode()

    def _watch(self, monitor: Any) -> bool:
        monitor.phase_start("Building", None, 2)
        for step in range(2):
            monitor.phase_start("Tactics", "Building", 10)
            for inner in range(10):
                self.on_step(10 * step + inner)
                if not monitor.step_complete("Tactics", inner):
                    return False
            monitor.phase_finish("Tactics")
            monitor.step_complete("Building", step)
        monitor.phase_finish("Building")
        return True

    def Runtime(self, logger: Any) -> Any:
        def deserialize(plan: bytes) -> FakeEngine | None:
            try:
                record = json.loads(plan)
            except ValueError:
                record = {"version": "none"}
            if record["version"] != self.__version__:
                logger.log(1, f"Version tag does not match.\nCurrent {self.__version__}")
                return None
            self.engine = engine = FakeEngine(record, self)
            return engine

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


def _dynamic(tensor: TensorSpec) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else -1 for d in tensor.shape)


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = shapes


class FakeConfig:
    def __init__(self, version: str) -> None:
        self.version = version
        self.flags = ["TF32"]  # unless told
        self.profiles: list[FakeProfile] = []
        self.get_flag = self.flags.__contains__
        self.clear_flag = self.flags.remove
        self.add_optimization_profile = self.profiles.append
        self.limits: dict[str, int] = {}
        self.capabilities: dict[int, int] = {}
        self.cache = FakeTimingCache(b"")

    def set_flag(self, flag: str) -> None:
        if self.version.startswith("8") and {*self.flags, flag} >= {"REFIT", "VERSION_COMPATIBLE"}:
            return  # only its log is told
        self.flags.append(flag)

    def set_memory_pool_limit(self, pool: str, limit: int) -> None:
        self.limits[pool] = limit

    def set_compute_capability(self, capability: int, i: int) -> None:
        self.capabilities[i] = capability

    def set_tactic_sources(self, sources: int) -> None:
        pass

    def create_timing_cache(self, content: bytes) -> FakeTimingCache:
        return FakeTimingCache(content)

    def set_timing_cache(self, cache: FakeTimingCache, ignore_mismatch: bool) -> None:
        self.cache = cache

    def get_timing_cache(self) -> FakeTimingCache:
        return self.cache


class FakeTimingCache:
    """A word for each build."""

    def __init__(self, content: bytes) -> None:
        self.words = set(content.split())

    def combine(self, other: FakeTimingCache, ignore_mismatch: bool) -> bool:
        self.words |= other.words
        return True

    def serialize(self) -> bytes:
        return b" ".join(sorted(self.words))


class FakeEngine:
    def __init__(self, record: dict[str, Any], trt: FakeTensorRT) -> None:
        self.record, self.trt = record, trt
        self.refitted = not record["stripped"]
        self.num_optimization_profiles = max(len(record["profiles"]), 1)
        if trt.__version__.startswith("8"):
            self.device_memory_size = 1000
            self.create_execution_context_without_device_memory = lambda: FakeContext(self)
        else:
            self.device_memory_size_v2 = 1000
            self.streamable_weights_size = self.weight_streaming_budget_v2 = 50 << 30
            self.create_execution_context = lambda strategy: FakeContext(self)

    @property
    def num_io_tensors(self) -> int:
        return len(self.record["inputs"] | self.record["outputs"])

    def get_tensor_name(self, i: int) -> str:
        return str([*self.record["inputs"], *self.record["outputs"]][i])

    def get_tensor_dtype(self, name: str) -> Any:
        inputs, outputs = self.record["inputs"], self.record["outputs"]
        return SimpleNamespace(name=inputs[name][0] if name in inputs else outputs[name])


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.device_memory = 0
        self.failing = False
        self.changes = 0  # of its shapes

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return True

    def set_device_memory(self, address: int, size: int) -> None:
        assert not self.engine.trt.__version__.startswith("8")
        assert size >= 1000
        self.device_memory = address

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        fixed = self.engine.record["inputs"][name][1]
        assert len(fixed) == len(shape)
        assert all(d in (-1, n) for d, n in zip(fixed, shape, strict=True))
        if -1 in fixed:
            least, _, most = self.engine.record["profiles"][self.profile][name]
            assert all(a <= n <= b for a, n, b in zip(least, shape, most, strict=True))
        self.changes += self.shapes.get(name) != tuple(shape)
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._compute({n: np.zeros(s, self._dtype(n)) for n, s in self.shapes.items()})[name].shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda, addresses, memory = self.engine.trt.cuda, dict(self.addresses), self.device_memory
        shapes = dict(self.shapes)
        assert self.engine.refitted
        if self.failing:
            return False
        changes = self.changes

        def run() -> None:
            assert memory in cuda.device, "the memory between the layers was freed"
            feeds = {n: cuda.view(addresses[n], s, self._dtype(n)) for n, s in shapes.items()}
            for name, value in self._compute(feeds).items():
                cuda.view(addresses[name], value.shape, self._dtype(name))[...] = value

        cuda._put(stream, run)
        cuda.void[run] = lambda: self.changes > changes
        return True

    def _dtype(self, name: str) -> np.dtype[Any]:
        return BY_NAME[self.engine.get_tensor_dtype(name).name]

    def _compute(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        return self.engine.trt.function(self.engine.record["model"])(feeds)
