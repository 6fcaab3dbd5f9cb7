"""What every backend must do, on y = x @ [[1, 2, 3], [4, 5, 6]] + offset. To cover a new backend: a line in OPENERS."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgediffusion.engines.base import Engine, HostEngine
from edgediffusion.engines.errors import GraphMismatch, UsageError
from edgediffusion.engines.fake import FakeEngine
from edgediffusion.engines.ort_device import DeviceRun
from edgediffusion.engines.registry import BACKENDS, open_engine
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec

from .fake_tensorrt import FakeTensorRT

SPEC = GraphSpec(
    "tiny",
    (TensorSpec("x", "float32", ("batch", 2)), TensorSpec("offset", "float32", (3,))),
    (TensorSpec("y", "float32", ("batch", 3)),),
)
WEIGHTS = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
X = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
OFFSET = np.array([10, 20, 30], np.float32)
Y = np.array([[11, 22, 33], [14, 25, 36], [15, 27, 39]], np.float32)


def fake(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {"y": feeds["x"] @ WEIGHTS + feeds["offset"]}


MODEL = Path(__file__).parent / "data" / "tiny.onnx"


def on_device() -> Engine:
    """The way to a GPU, with host memory in the place of the device's."""
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    return HostEngine(SPEC, DeviceRun(session, SPEC, "cpu"))


OPENERS: dict[str, Callable[[], Engine]] = {
    "fake": lambda: FakeEngine(SPEC, fake),
    "ort": lambda: open_engine(MODEL, SPEC, backend="ort", device="cpu"),
    "ort on a device": on_device,
    "ort on cuda": lambda: open_engine(MODEL, SPEC, backend="ort", device="cuda"),
    "tensorrt": lambda: open_engine(MODEL, SPEC, backend="tensorrt"),
    "tensorrt_rtx": lambda: open_engine(MODEL, SPEC, backend="tensorrt_rtx"),
}
PARAMS = [pytest.param(name, marks=pytest.mark.gpu if "cuda" in name else ()) for name in OPENERS]

pytestmark = pytest.mark.filterwarnings("ignore:building an engine of tiny")  # TensorRT's are, for each batch


@pytest.fixture(autouse=True)
def installed(request: pytest.FixtureRequest) -> None:
    """TensorRT over a GPU that is none, where a test does not want a real one."""
    if request.node.get_closest_marker("gpu") is None:
        tensorrt: Callable[..., FakeTensorRT] = request.getfixturevalue("tensorrt")
        tensorrt("10.13.2.6")
        tensorrt("1.7.1.116", "tensorrt_rtx")


@pytest.fixture(params=PARAMS)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with OPENERS[request.param]() as opened:
        yield opened


def test_every_backend_is_covered() -> None:
    assert BACKENDS.keys() <= OPENERS.keys()


def test_runs_any_batch(engine: Engine) -> None:
    assert engine.spec is SPEC
    for batch in (3, 1, 2):
        outputs = engine({"x": X[:batch], "offset": OFFSET})
        assert outputs.keys() == {"y"}
        assert outputs["y"].dtype == np.float32
        np.testing.assert_array_equal(outputs["y"], Y[:batch])


def test_takes_arrays_that_are_not_contiguous(engine: Engine) -> None:
    np.testing.assert_array_equal(engine({"x": np.asfortranarray(X), "offset": OFFSET[::-1][::-1]})["y"], Y)


def test_feeds_are_left_alone(engine: Engine) -> None:
    feeds = {"x": X.copy(), "offset": OFFSET.copy()}
    engine(feeds)
    np.testing.assert_array_equal(feeds["x"], X)
    assert feeds.keys() == {"x", "offset"}


def test_outputs_belong_to_the_caller(engine: Engine) -> None:
    first = engine({"x": X, "offset": OFFSET})["y"]
    second = engine({"x": X, "offset": OFFSET})["y"]
    second += 1
    engine({"x": X + 1, "offset": OFFSET})
    engine.close()
    np.testing.assert_array_equal(first, Y)
    np.testing.assert_array_equal(second, Y + 1)


def test_feeds_that_do_not_fit(engine: Engine) -> None:
    with pytest.raises(GraphMismatch, match="tiny: missing input offset"):
        engine({"x": X})
    with pytest.raises(GraphMismatch, match=r"tiny\.x: dtype float64"):
        engine({"x": X.astype(np.float64), "offset": OFFSET})
    np.testing.assert_array_equal(engine({"x": X, "offset": OFFSET})["y"], Y)


def test_constants_are_given_once(engine: Engine) -> None:
    offset = OFFSET.copy()
    bound = engine.bind({"offset": offset})
    offset += 1
    np.testing.assert_array_equal(bound({"x": X})["y"], Y)
    np.testing.assert_array_equal(bound.bind({"x": X})({})["y"], Y)
    np.testing.assert_array_equal(engine({"x": X, "offset": OFFSET})["y"], Y)


def test_constants_that_do_not_fit(engine: Engine) -> None:
    with pytest.raises(GraphMismatch, match="tiny: unknown input offsets; known: offset, x"):
        engine.bind({"offsets": OFFSET})
    with pytest.raises(GraphMismatch, match="tiny: input offset is bound already; leave it out"):
        engine.bind({"offset": OFFSET})({"x": X, "offset": OFFSET})
    with pytest.raises(GraphMismatch, match="tiny: input offset is bound already; leave it out"):
        engine.bind({"offset": OFFSET}).bind({"offset": OFFSET})


def test_close_twice(engine: Engine) -> None:
    bound = engine.bind({"offset": OFFSET})
    engine.close()
    engine.close()
    with pytest.raises(UsageError, match="tiny: this engine is closed; open it again"):
        engine({"x": X, "offset": OFFSET})
    np.testing.assert_array_equal(bound({"x": X})["y"], Y)


def test_with_closes(engine: Engine) -> None:
    with engine as entered:
        assert entered is engine
    with pytest.raises(UsageError, match="closed"):
        engine({"x": X, "offset": OFFSET})


@pytest.mark.parametrize("name", PARAMS)
def test_opens_and_runs_in_threads(name: str) -> None:
    results: list[Array] = []

    def work() -> None:
        with OPENERS[name]() as engine:
            results.extend(engine({"x": X, "offset": OFFSET})["y"] for _ in range(10))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    assert all(np.array_equal(result, Y) for result in results)
