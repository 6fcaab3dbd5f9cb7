"""TensorRT and TensorRT-RTX: plans from the store, run on the GPU."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .base import Building, Engine, HostEngine, unsent
from .cuda import DeviceMemory, Event, Launches, Staging, Stream, find_gpu, free_memory
from .errors import EngineError, OutOfMemory
from .profile import Profile, sizes_of
from .spec import Array, GraphSpec
from .store import DamagedEngine, Entry, NoEngine
from .tensorrt_build import in_a_thread, make_logger, out_of_memory, start
from .tensorrt_store import EngineBuilding, Job, ensure, find, options_for
from .tensorrt_versions import TensorRT, load

# Sets of input shapes whose buffers and captured launches are kept.
MAX_KEPT = 8
# Bytes: with nothing free at all TensorRT 8.6 ends in a segmentation fault, and with some it says what it lacks.
_LEAST_FREE = 16 << 20
Shapes = tuple[tuple[int, ...], ...]
_ANOTHER = "delete it and build another"
_DTYPES = {"FLOAT": "f4", "HALF": "f2", "INT32": "i4", "INT64": "i8", "INT8": "i1", "UINT8": "u1", "BOOL": "?"}


def open_engine(
    model: Path,
    spec: GraphSpec,
    *,
    device: str,
    dialects: Mapping[str, Path],
    building: Building,
    backend: str = "tensorrt",
) -> Engine:
    """See `registry.open_engine`. It has one device, and reads the portable graph.

    Raises:
        NoEngine: none was built that fits this machine and graph, and none is to be; it says what differs and the
            command.
    """
    job = Job.of(model, spec, building.precision, building.sha256)
    return PlanEngine(spec, PlanRun(load(backend), job, building))


class PlanEngine(HostEngine):
    """An `Engine` that computes the next outputs while those before are copied out."""

    def each(self, feeds: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """See `Engine`."""
        run = self._running()
        assert isinstance(run, PlanRun)
        for outputs in run.each(map(self._merged, feeds)):
            self._spec.check_outputs(outputs)
            yield outputs

    def close(self) -> None:
        """See `Engine`. What it had on the GPU is freed, even where the traceback of an error refers to it still.

        So is what it shares with engines of `bind`: one of them that is called again loads the plan anew.
        """
        if isinstance(self._run, PlanRun):
            self._run.close()
        super().close()


class Scratch:
    """Memory for what lies between the layers: one for all engines, which therefore take turns in one stream."""

    def __init__(self) -> None:
        self.turn = threading.RLock()
        self.memory: DeviceMemory | None = None

    @functools.cached_property
    def stream(self) -> Stream:
        """In which all engines compute."""
        return Stream()

    def at_least(self, size: int) -> DeviceMemory:
        """It is another one after it has grown, and launches captured before are void. Nobody else may keep it."""
        if self.memory is None or self.memory.size < size:
            self.memory = None  # the old one first
            self.memory = DeviceMemory(size)
        return self.memory


_SCRATCH = Scratch()


class Plan:
    """A plan that was loaded, with a context for each of its profiles, and the shapes that each was `set_to` last."""

    def __init__(self, tensorrt: TensorRT, entry: Entry, job: Job) -> None:
        self.entry = entry
        self._tensorrt = tensorrt
        self._check_room()
        logger = make_logger(tensorrt.module)
        runtime = start(tensorrt, tensorrt.module.Runtime, logger)
        if "version_compatible" in entry.recipe.flags:
            runtime.engine_host_code_allowed = True  # such a plan brings its own runtime
        self.engine = runtime.deserialize_cuda_engine(entry.read())
        self.errors: list[str] = logger.errors
        if self.engine is None:
            raise self._refused()
        self._check_names(job.spec)
        self._keep = (runtime, logger)
        if "weight_streaming" in entry.recipe.flags:
            self._stream_weights()
        if "weight_stripped" in entry.recipe.flags:
            self._refit(job.path, logger)
        self._contexts: dict[int, Any] = {}
        self.set_to: dict[int, Shapes] = {}

    def _check_room(self) -> None:
        if (free := free_memory()) < _LEAST_FREE:
            raise OutOfMemory(f"{self.entry.plan}: out of device memory, {free >> 20} MiB are free; free some of it")

    def _refused(self) -> EngineError:
        told = "; ".join(self.errors[-2:])
        if out_of_memory(self.errors):
            return OutOfMemory(f"{self.entry.plan}: out of device memory while loading ({told}); free some of it")
        return EngineError(f"{self.entry.plan}: {self._tensorrt.version.label} refuses it ({told}); {_ANOTHER}")

    def _check_names(self, spec: GraphSpec) -> None:
        found = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        expected = [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
        if sorted(found) != sorted(expected):
            names = f"inputs and outputs {', '.join(found)}, expected {', '.join(expected)}"
            raise EngineError(f"{self.entry.plan}: {names}; {_ANOTHER}")

    def _stream_weights(self) -> None:
        """Keep as many weights on the GPU as leave a quarter of its memory to other engines and their outputs."""
        room = free_memory() - self._tensorrt.scratch_size(self.engine) - find_gpu().memory // 4
        self.engine.weight_streaming_budget_v2 = max(0, min(room, int(self.engine.streamable_weights_size)))

    def _refit(self, model: Path, logger: Any) -> None:
        refitter = self._tensorrt.module.Refitter(self.engine, logger)
        parser = self._tensorrt.module.OnnxParserRefitter(refitter, logger)
        if not (parser.refit_from_file(str(model)) and refitter.refit_cuda_engine()):
            raise EngineError(f"{self.entry.plan}: {model} does not give all its weights ({'; '.join(logger.errors)})")

    def context(self, profile: int, stream: Stream) -> Any:
        """The one of this profile, without memory of its own."""
        if profile not in self._contexts:
            self._check_room()
            context = self._tensorrt.new_context(self.engine)
            if context is None:
                told = "; ".join(self.errors[-2:]) or "it does not say why"
                self.errors.clear()
                raise OutOfMemory(
                    f"{self.entry.plan}: out of device memory, no context is made ({told}); free some of it"
                )
            if self.engine.num_optimization_profiles > 1:
                self.done(context.set_optimization_profile_async(profile, int(stream.handle)))
                stream.wait()
            self._contexts[profile] = context
        return self._contexts[profile]

    def enqueue(self, profile: int, stream: Stream) -> None:
        """Put a run of this profile's context into the stream."""
        self.done(self.context(profile, stream).execute_async_v3(int(stream.handle)))

    def done(self, well: bool) -> None:
        """Raise what TensorRT has told since the last failure, where it did not do what it was asked."""
        if well:
            return
        name, told = self.entry.recipe.source.component, "; ".join(self.errors[-2:]) or "it does not say why"
        full = out_of_memory(self.errors)
        self.errors.clear()
        if full:
            raise OutOfMemory(f"{name}: out of device memory ({told}); take a smaller --size or --batch-size")
        raise EngineError(f"{name}: TensorRT failed ({told})")

    def close(self) -> None:
        """Free it, in the order in which TensorRT's objects need one another."""
        self._contexts.clear()
        del self.engine, self._keep

    def dtype(self, name: str) -> np.dtype[Any]:
        """What an input or output has in the plan."""
        return np.dtype(_DTYPES[self.engine.get_tensor_dtype(name).name])


class _Outbox:
    """Outputs on their way to the host while the next ones are computed where these were."""

    def __init__(self, outputs: Mapping[str, Staging]) -> None:
        self._places = {name: Staging(output.host.shape, output.host.dtype) for name, output in outputs.items()}
        self._computed, self._copied = Event(), Event()

    def take(self, outputs: Mapping[str, Staging], stream: Stream) -> None:
        """Copy the outputs aside, once those before have left for the host."""
        stream.after(self._copied)
        for name, place in self._places.items():
            place.take(outputs[name], stream)
        self._computed.record(stream)

    def fetch(self, copies: Stream) -> None:
        """Copy what was taken to the host, where nobody wants those before any more."""
        copies.after(self._computed)
        for place in self._places.values():
            place.fetch(copies)
        self._copied.record(copies)

    def wait(self) -> dict[str, Staging]:
        """What was fetched."""
        self._copied.wait()
        return self._places


@dataclass
class _Bucket:
    """One set of input shapes. `sent` are the arrays that were copied to the GPU last, which `arrived` tells of."""

    plan: Plan
    profile: int
    shapes: Shapes
    inputs: dict[str, Staging]
    outputs: dict[str, Staging]
    sent: dict[str, Array] = field(default_factory=dict)
    arrived: Event = field(default_factory=Event)
    outbox: _Outbox | None = None
    scratch: Callable[[], DeviceMemory | None] = lambda: None
    launches: Launches | None = None
    calls: int = 0


class PlanRun:
    """Host arrays to host arrays. Plans are loaded when shapes of theirs come up, a sole one at once.

    The launches of a set of shapes are captured in its second call, and replayed from then on.
    """

    def __init__(self, tensorrt: TensorRT, job: Job, building: Building) -> None:
        self._tensorrt = tensorrt
        self._job = job
        self._spec = job.spec
        self._building = building
        self._entries = self._find()
        self._stream, self._copies = _SCRATCH.stream, Stream()
        self._plans: dict[Path, Plan] = {}
        self._kept: dict[Shapes, _Bucket] = {}
        if len(self._entries) == 1:
            self._plan(self._entries[0])

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once.

        Raises:
            NoEngine: no engine takes these shapes; it lists those that there are.
            EngineError: it fails: out of memory, say.
        """
        with _SCRATCH.turn, self._bucket(feeds) as bucket:
            self._start(bucket, feeds)
            for staging in bucket.outputs.values():
                staging.fetch(self._stream)
            self._stream.wait()
            return self._read(bucket.outputs)

    def each(self, feeds: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """Run the graph for each of `feeds`. Outputs are copied out, and used, while the next ones are computed."""
        used: _Bucket | None = None
        waiting: _Outbox | None = None
        for one in feeds:
            with _SCRATCH.turn, self._bucket(one) as bucket:
                if bucket is not used:
                    used, box = bucket, bucket.outbox or _Outbox(bucket.outputs)
                    bucket.outbox = None  # nobody else's, meanwhile
                self._start(bucket, one)
                box.take(bucket.outputs, self._stream)
            outputs = None if waiting is None else self._read(waiting.wait())
            box.fetch(self._copies)
            waiting = box
            if outputs is not None:
                yield outputs
        if used is not None and waiting is not None:
            yield self._read(waiting.wait())
            used.outbox = waiting

    def close(self) -> None:
        """Free all plans and buffers."""
        with _SCRATCH.turn:
            self._kept.clear()
            while self._plans:
                self._plans.popitem()[1].close()

    @contextlib.contextmanager
    def _bucket(self, feeds: Mapping[str, Array]) -> Iterator[_Bucket]:
        """That of these shapes, which is given up where something fails."""
        shapes = tuple(feeds[tensor.name].shape for tensor in self._spec.inputs)
        try:
            yield self._kept.get(shapes) or self._allocate(feeds, shapes)
        except EngineError:
            self._kept.pop(shapes, None)
            raise

    def _start(self, bucket: _Bucket, feeds: Mapping[str, Array]) -> None:
        bucket.arrived.wait()
        for name, array in unsent(feeds, bucket.sent):
            bucket.inputs[name].send(array, self._stream)
        bucket.arrived.record(self._stream)
        self._launch(bucket)

    def _read(self, outputs: Mapping[str, Staging]) -> dict[str, Array]:
        return {tensor.name: np.array(outputs[tensor.name].host, tensor.dtype) for tensor in self._spec.outputs}

    def _find(self) -> list[Entry]:
        try:
            return find(self._tensorrt, self._job)
        except NoEngine as error:
            if not self._building.allowed:
                raise
            if "that fits" in error.reason:
                warnings.warn(f"{error.reason}; building another", EngineBuilding, stacklevel=2)
            return []

    def _plan(self, entry: Entry) -> Plan | None:
        """None where it was damaged and may be built again."""
        if entry.plan not in self._plans:
            try:
                self._plans[entry.plan] = in_a_thread(lambda: Plan(self._tensorrt, entry, self._job))
            except DamagedEngine as error:
                if not self._building.allowed:
                    raise
                warnings.warn(f"{error}", EngineBuilding, stacklevel=2)
                entry.remove()
                self._entries.remove(entry)
                return None
        return self._plans[entry.plan]

    def _covering(self, sizes: Mapping[str, int]) -> tuple[Entry, int]:
        """The engine, and which of its profiles, for these sizes; built now where there is none."""
        for entry in self._entries:
            for i, profile in enumerate(entry.recipe.profiles):
                if profile.covers(sizes):
                    return entry, i
        if not self._building.allowed:
            raise self._no_profile(sizes)
        profile = Profile.of(sizes)
        message = f"building an engine of {self._spec.name} for {profile}; it is kept, and takes minutes if it is large"
        warnings.warn(message, EngineBuilding, stacklevel=2)
        options, report = options_for(self._tensorrt, self._job), self._building.reports(self._spec.name)
        self._entries.append(ensure(self._tensorrt, self._job, [profile], options, self._job.stores[-1], report))
        return self._entries[-1], 0

    def _allocate(self, feeds: Mapping[str, Array], shapes: Shapes) -> _Bucket:
        plan = None
        while plan is None:
            entry, profile = self._covering(sizes_of(self._spec, feeds))
            plan = self._plan(entry)
        context = in_a_thread(functools.partial(plan.context, profile, self._stream))
        plan.set_to[profile] = shapes
        inputs = {}
        for tensor in self._spec.inputs:
            plan.done(context.set_input_shape(tensor.name, feeds[tensor.name].shape))
            inputs[tensor.name] = Staging(feeds[tensor.name].shape, plan.dtype(tensor.name))
        outputs = {
            tensor.name: Staging(tuple(context.get_tensor_shape(tensor.name)), plan.dtype(tensor.name))
            for tensor in self._spec.outputs
        }
        if len(self._kept) >= MAX_KEPT:
            self._kept.pop(next(iter(self._kept)))
        self._kept[shapes] = _Bucket(plan, profile, shapes, inputs, outputs)
        return self._kept[shapes]

    def _no_profile(self, sizes: Mapping[str, int]) -> NoEngine:
        wanted = ", ".join(f"{name} {size}" for name, size in sorted(sizes.items()))
        built = "; ".join(str(profile) for entry in self._entries for profile in entry.recipe.profiles)
        command = self._job.command(self._tensorrt.backend, " --shapes WIDTHxHEIGHT --batch N")
        return NoEngine(f"{self._spec.name}: no engine for {wanted}; there are: {built}", command)

    def _launch(self, bucket: _Bucket) -> None:
        memory = _SCRATCH.at_least(self._tensorrt.scratch_size(bucket.plan.engine))
        # What was captured is void, too, once its context was set to other shapes.
        if bucket.scratch() is not memory or bucket.plan.set_to[bucket.profile] != bucket.shapes:
            bucket.scratch, bucket.launches, bucket.calls = weakref.ref(memory), None, 0
        if bucket.launches is None:
            self._prepare(bucket, memory)
            bucket.calls += 1
            if bucket.calls != 2:  # the first call also sets up what cannot be captured; a third means it failed
                return self._enqueue(bucket)
            try:
                bucket.launches = self._stream.capture(lambda: self._enqueue(bucket))
            except EngineError:
                return self._enqueue(bucket)
        bucket.launches(self._stream)
        return None

    def _prepare(self, bucket: _Bucket, memory: DeviceMemory) -> None:
        """A context may have served other shapes since."""
        context = bucket.plan.context(bucket.profile, self._stream)
        self._tensorrt.give_scratch(context, memory.address, memory.size)
        bucket.plan.set_to[bucket.profile] = bucket.shapes
        for name, staging in bucket.inputs.items():
            bucket.plan.done(context.set_input_shape(name, staging.host.shape))
        for name, staging in (bucket.inputs | bucket.outputs).items():
            bucket.plan.done(context.set_tensor_address(name, staging.device.address))

    def _enqueue(self, bucket: _Bucket) -> None:
        bucket.plan.enqueue(bucket.profile, self._stream)
