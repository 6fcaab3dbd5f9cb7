"""The arena over a driver without memory, and what is done with it around ONNX Runtime."""

from __future__ import annotations

import ctypes
import itertools
import shutil
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgediffusion.engines import ort, ort_arena, ort_device, ort_library, ort_weights, probe
from edgediffusion.engines.base import HostEngine
from edgediffusion.engines.errors import BackendUnavailable, OutOfMemory
from edgediffusion.engines.onnx_file import TURNED
from edgediffusion.engines.ort_arena import Arena, NotTaken
from edgediffusion.engines.ort_device import DeviceRun
from edgediffusion.engines.ort_library import FOLDER
from edgediffusion.engines.spec import Array

hypothesis, onnx = pytest.importorskip("hypothesis"), pytest.importorskip("onnx")
st = hypothesis.strategies

HERE = Path(__file__).parent
PAGE, PAGES, ALIGNMENT = 65536, 64, 512  # of fake_driver.c and arena.c
COMPILER = shutil.which("cc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The arena with the driver of `fake_driver.c`."""
    library = tmp_path_factory.mktemp("arena") / "arena.so"
    fakes = ["-Ddlopen=fake_dlopen", "-Ddlsym=fake_dlsym"]
    sources = [str(FOLDER / "arena.c"), str(HERE / "fake_driver.c")]
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([str(COMPILER), *flags, *fakes, "-o", str(library), *sources, "-lpthread"], check=True)
    return library


@pytest.fixture(scope="module")
def fresh(compiled: Path) -> Callable[[], ctypes.CDLL]:
    """Makes libraries that have allocated nothing: each is a file of its own."""
    numbers = itertools.count()

    def load() -> ctypes.CDLL:
        library = ctypes.CDLL(str(shutil.copy(compiled, compiled.with_name(f"{next(numbers)}.so"))))
        library.edgediffusion_allocate.restype = library.edgediffusion_tensor.restype = ctypes.c_void_p
        library.edgediffusion_kept.restype = ctypes.c_size_t
        assert library.edgediffusion_arena() == 0
        return library

    return load


def allocate(library: ctypes.CDLL, size: int) -> int | None:
    """An address, None where there is no memory."""
    address: int | None = library.edgediffusion_allocate(ctypes.c_size_t(size))
    return address


def free(library: ctypes.CDLL, address: int | None) -> None:
    library.edgediffusion_free(ctypes.c_void_p(address))


SIZES = st.one_of(st.integers(1, 3 * ALIGNMENT), st.integers(1, PAGES * PAGE // 3))
STEPS = st.lists(st.tuples(st.sampled_from(["keep", "run", "free", "trim", "trim all"]), SIZES), max_size=60)


@needs_compiler
@hypothesis.given(steps=STEPS)  # type: ignore[untyped-decorator]  # it may not be here
def test_pieces_lie_apart_in_memory_that_is_there(
    fresh: Callable[[], ctypes.CDLL], steps: list[tuple[str, int]]
) -> None:
    library = fresh()
    held: dict[int, tuple[int, str]] = {}
    for step, size in steps:
        if step in ("keep", "run"):
            library.edgediffusion_keep(int(step == "keep"))
            address = allocate(library, size)
            if address is None:
                continue
            assert address % ALIGNMENT == 0
            assert all(address + size <= start or start + other <= address for start, (other, _) in held.items())
            held[address] = size, step
        elif step == "free" and held:
            free(library, address := sorted(held)[size % len(held)])
            del held[address]
        elif step.startswith("trim"):
            library.edgediffusion_trim(int(step == "trim"))
        for start, (length, _) in held.items():
            assert library.fake_accessible(ctypes.c_uint64(start))
            assert library.fake_accessible(ctypes.c_uint64(start + length - 1))
    kept = [(size // ALIGNMENT + 1) * ALIGNMENT for size, of in held.values() if of == "keep"]
    assert library.edgediffusion_kept() == sum(kept)
    assert [library.edgediffusion_settle() for _ in range(2)] == [len(held) - len(kept), 0]
    for address in held:
        free(library, address)
    library.edgediffusion_trim(0)
    assert (library.fake_mapped(), library.fake_taken(), library.fake_handles(), library.fake_faults()) == (0, 0, 0, 0)


@needs_compiler
def test_the_smallest_gap_that_is_large_enough_is_filled(fresh: Callable[[], ctypes.CDLL]) -> None:
    library = fresh()
    large, _, small, _ = (allocate(library, pages * PAGE - ALIGNMENT) for pages in (9, 1, 5, 1))
    free(library, large)
    free(library, small)
    assert [allocate(library, pages * PAGE - ALIGNMENT) for pages in (5, 9)] == [small, large]
    assert library.fake_mapped() == 16


@needs_compiler
def test_what_was_freed_grows_together(fresh: Callable[[], ctypes.CDLL]) -> None:
    """Which ONNX Runtime's own arena does within a piece that it asked the driver for, and no further."""
    library, size = fresh(), 10 * PAGE - ALIGNMENT
    pieces = [allocate(library, size) for _ in range(4)]
    for piece in (pieces[1], pieces[3], pieces[0], pieces[2]):
        free(library, piece)
    assert allocate(library, 4 * 10 * PAGE - ALIGNMENT) == pieces[0]
    assert library.fake_mapped() == 40


@needs_compiler
def test_runs_share_memory_and_what_is_kept_is_not_in_it(fresh: Callable[[], ctypes.CDLL]) -> None:
    library = fresh()
    first = allocate(library, PAGE)
    free(library, first)
    library.edgediffusion_keep(1)
    kept = allocate(library, PAGE)
    library.edgediffusion_keep(0)
    assert allocate(library, PAGE) == first != kept
    free(library, kept)
    free(library, first)
    library.edgediffusion_trim(1)
    assert library.fake_mapped() == 2  # captured launches may write there
    library.edgediffusion_trim(0)
    assert library.fake_mapped() == 0


@needs_compiler
def test_without_memory_there_is_nothing_and_on_it_goes(fresh: Callable[[], ctypes.CDLL]) -> None:
    library = fresh()
    assert allocate(library, 2**64 - 1) is None
    half = allocate(library, PAGES // 2 * PAGE - ALIGNMENT)
    library.edgediffusion_keep(1)
    assert allocate(library, (PAGES // 2 + 1) * PAGE) is None
    free(library, half)
    library.edgediffusion_trim(0)
    assert allocate(library, (PAGES - 1) * PAGE) is not None
    assert library.fake_faults() == 0


@needs_compiler
def test_values_are_freed_by_whoever_holds_them_last(fresh: Callable[[], ctypes.CDLL]) -> None:
    arena = Arena()
    arena._library = fresh()
    value = arena.like(np.ones((3, 5, 2), np.float16))
    assert (value.shape(), value.data_type(), value.device_name()) == ([3, 5, 2], "tensor(float16)", "cuda")
    with arena.taken():
        pass
    kept = arena._kept()
    with pytest.raises(NotTaken), arena.taken():
        del value
    assert (kept, arena._kept()) == (ALIGNMENT, 0)
    with pytest.raises(OutOfMemory, match="its weights do not fit on the GPU; free what else is there"):
        arena.like(np.zeros(PAGES * PAGE, np.uint8))


class Library:
    """Of an arena in which runs have `left` blocks since it was asked last, and in which `free` pages are free."""

    def __init__(self) -> None:
        self.left, self.free, self.trimmed = 0, 0, list[bool]()

    def edgediffusion_settle(self) -> int:
        left, self.left = self.left, 0
        return left

    def edgediffusion_trim(self, graphs: bool) -> int:
        self.trimmed.append(graphs)
        return self.free

    def edgediffusion_keep(self, keep: int) -> None:
        pass


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> tuple[Arena, Library]:
    """An arena that sessions are told to use."""
    arena, library = Arena(), Library()
    arena._library = library  # type: ignore[assignment]
    monkeypatch.setattr(ort_device, "ARENA", arena)
    return arena, library


def test_launches_are_captured_anew_when_a_run_has_left_something(shared: tuple[Arena, Library]) -> None:
    arena, library = shared
    session = onnxruntime.InferenceSession(probe.MODEL, providers=["CPUExecutionProvider"])
    engine = HostEngine(probe.SPEC, run := DeviceRun(session, probe.SPEC, "cpu"))
    feeds = {"x": np.ones((1, 1, 2, 2), np.float32)}

    def captured() -> str:
        engine(feeds)
        (buffers,) = run._held.buffers.values()
        return str(buffers.options.get_run_config_entry("gpu_graph_id"))

    assert [captured() for _ in range(3)] == ["-1", "0", "0"]
    library.left = 1  # by another session, say
    arena.ran()
    assert [captured() for _ in range(2)] == ["1", "1"]
    library.left = 1  # by this one: its own launches may write there
    arena.generation += 1
    assert [captured() for _ in range(3)] == ["2", "3", "3"]
    arena.exhausted()  # there was nothing to give back
    assert captured() == "3"
    library.free = 1
    arena.exhausted()
    assert [captured() for _ in range(2)] == ["4", "4"]
    assert library.trimmed == [False, False]


def test_what_runs_work_in_is_given_back_with_the_last_session(shared: tuple[Arena, Library]) -> None:
    arena, library = shared
    for _ in range(2):
        arena.opened()
    for _ in range(2):
        arena.closed()
    assert library.trimmed == [True, False]


@needs_compiler
def test_what_a_run_leaves_where_another_left_something_is_seen(fresh: Callable[[], ctypes.CDLL]) -> None:
    """Though no more bytes are left than before."""
    library, arena = fresh(), Arena()
    arena._library = library
    for _ in range(2):
        left, generation = allocate(library, PAGE), arena.generation
        arena.ran()
        arena.ran()
        assert arena.generation == generation + 1
        free(library, left)
        arena.closed()


@needs_compiler
def test_weights_that_do_not_fit_leave_nothing(
    fresh: Callable[[], ctypes.CDLL], monkeypatch: pytest.MonkeyPatch
) -> None:
    arena = Arena()
    arena._library = fresh()
    for module in (ort_weights, ort_device):
        monkeypatch.setattr(module, "ARENA", arena)
    with pytest.raises(OutOfMemory) as raised:
        ort_weights._room({str(k): np.zeros((PAGES - 2) * PAGE // 2, np.uint8) for k in range(3)})
    ort_device.lacking(raised.value)
    assert (arena._kept(), arena._library.fake_mapped()) == (0, 0)


@needs_compiler
@pytest.mark.parametrize("lacks", [None, "like", "HostMemory", "Stream"])
def test_weights_are_given_where_all_that_it_takes_works(
    lacks: str | None, fresh: Callable[[], ctypes.CDLL], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise BackendUnavailable("not here", "get one")

    arena, options, library = Arena(), onnxruntime.SessionOptions(), fresh()
    monkeypatch.setattr(ort_arena, "_registered", lambda: library)
    monkeypatch.setattr(ort_arena, "HostMemory", HostMemory)
    monkeypatch.setattr(ort_arena, "Stream", Stream)
    if lacks is not None:
        monkeypatch.setattr(arena if lacks == "like" else ort_arena, lacks, fails)
    arena.share(options)
    assert (arena.takes_weights, arena.lacks) == ((True, "") if lacks is None else (False, "not here; get one"))
    assert options.get_session_config_entry("session.use_env_allocators") == "1"
    assert arena._kept() == 0


def test_where_there_is_no_arena_sessions_have_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ort_library, "LIBRARY", tmp_path / "ort_operators.so")
    arena, options = Arena(), onnxruntime.SessionOptions()
    arena.share(options)
    with arena.keeping(), arena.taken():
        arena.ran()
        arena.exhausted()
    with pytest.raises(RuntimeError, match="does not have configuration"):
        options.get_session_config_entry("session.use_env_allocators")
    assert not arena.takes_weights


def test_weights_that_are_not_taken_are_read_by_onnx_runtime() -> None:
    tried, first = [], list[weakref.ref[Stream]]()

    def opener(model: Any, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
        tried.append(options)
        if len(tried) == 1:
            session = Stream()
            first.append(weakref.ref(session))
            raise NotTaken("it does not take them")
        assert first[0]() is None
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    ort._open(probe.MODEL, probe.SPEC, opener, ort._on_cpu).close()
    assert len(tried) == 2
    assert tried[0] is not tried[1]


class HostMemory:
    """`cuda.HostMemory` where the GPU's addresses are the host's."""

    def __init__(self, size: int) -> None:
        self.content = np.zeros(size, np.int8)

    def send(self, size: int, address: int, stream: object) -> None:
        ctypes.memmove(address, self.content.ctypes.data, size)


class Stream:
    """`cuda.Stream`, through at once."""

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("piece", [1, 24, 4096])
def test_all_weights_are_given_those_that_are_turned_turned(
    piece: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights = {
        f"k{TURNED}": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
        "b": np.linspace(1, 2, 3, dtype=np.float32),
        "scalar": np.array(0.5, np.float32),
    }
    shapes = {f"k{TURNED}": [2, 2, 2, 3], "b": [3], "scalar": []}
    content = np.concatenate([weight.ravel() for weight in weights.values()])
    (tmp_path / "w.bin").write_bytes(content.tobytes())
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 2, 2, 3]) for name in "xy")
    chain = itertools.pairwise(["x", "z", "v", "y"])
    nodes = [onnx.helper.make_node("Add", [a, name], [b]) for (a, b), name in zip(chain, weights, strict=True)]
    graph, offset = onnx.helper.make_graph(nodes, "g", [x], [y]), 0
    for name, weight in weights.items():
        tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=shapes[name])
        tensor.data_location = onnx.TensorProto.EXTERNAL
        place = {"location": "w.bin", "offset": str(offset), "length": str(weight.nbytes)}
        tensor.external_data.extend(onnx.StringStringEntryProto(key=key, value=value) for key, value in place.items())
        graph.initializer.append(tensor)
        offset += weight.nbytes
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    arena = Arena()
    arena.takes_weights = True
    monkeypatch.setattr(ort_weights, "ARENA", arena)
    room = list[Array]()  # which ONNX Runtime does not keep, as it does what the arena gives

    def like(array: Array) -> onnxruntime.OrtValue:
        room.append(np.empty(array.shape, array.dtype))
        return onnxruntime.OrtValue.ortvalue_from_numpy(room[-1])

    monkeypatch.setattr(arena, "like", like)
    monkeypatch.setattr(ort_weights, "HostMemory", HostMemory)
    monkeypatch.setattr(ort_weights, "Stream", Stream)
    monkeypatch.setattr(ort_weights, "_PIECE", piece)
    options = onnxruntime.SessionOptions()
    given = ort_weights.give_weights(tmp_path / "model.onnx", options)
    (tmp_path / "w.bin").write_bytes(np.full_like(content, 9).tobytes())  # so what counts is not read from there
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", options, providers=["CPUExecutionProvider"])
    ort_weights.release(given)
    assert given == {}
    (result,) = session.run(None, {"x": np.zeros((2, 2, 2, 3), np.float32)})
    kernel, bias, scalar = weights.values()
    np.testing.assert_array_equal(result, kernel.transpose(0, 2, 3, 1) + bias + scalar)
