"""edgediffusion itself, as `serve` runs it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

from edgediffusion.engines.base import Engine
from edgediffusion.engines.spec import Array, GraphSpec
from edgediffusion.runtime.bundle import Bundle
from edgediffusion.runtime.memory import tune_heaps
from edgediffusion.runtime.pipeline import Pipeline
from edgediffusion.runtime.scoring import clip_scores

Outputs = Mapping[str, Any]
Call = Callable[[], Outputs]
Spans = list[tuple[str, float, float]]
CONSTANTS = ("encoder_hidden_states", "text_embeds", "time_ids")  # bound once a generation, as the loop does it


class Watched:
    """An engine that notes when it was called, and until when."""

    def __init__(self, engine: Engine, spans: Spans) -> None:
        self._engine, self._spans = engine, spans

    @property
    def spec(self) -> GraphSpec:
        """See `Engine`."""
        return self._engine.spec

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `Engine`."""
        started = time.perf_counter()
        outputs = self._engine(feeds)
        self._spans.append((self.spec.name, started, time.perf_counter()))
        return outputs

    def each(self, feeds: Iterable[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """See `Engine`. One after the other: each call is noted."""
        return map(self, feeds)

    def bind(self, constants: Mapping[str, Array]) -> Watched:
        """See `Engine`."""
        return Watched(self._engine.bind(constants), self._spans)

    def close(self) -> None:
        """See `Engine`."""
        self._engine.close()

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class WatchedBundle(Bundle):
    """A bundle whose engines note their calls in `spans`."""

    spans: Spans

    def engine(self, name: str, variant: str | None = None) -> Engine:
        """See `Bundle`."""
        return Watched(super().engine(name, variant), self.spans)


def load(request: Mapping[str, Any]) -> dict[str, Callable[..., Call]]:
    """Open the bundle and its engines, in a process set up as the command's; see `serve`."""
    tune_heaps()
    bundle = WatchedBundle.open(
        request["source"], backend=request["backend"], device=request["device"], build=request["build"]
    )
    assert isinstance(bundle, WatchedBundle)
    bundle.spans = []
    pipeline = Pipeline(bundle, safety_checker=False)  # as its peers
    graphs = {name: partial(_graph, bundle, name) for name in bundle.manifest.graphs}
    providers = request["providers"]
    return {
        **graphs,
        "picture": partial(_picture, pipeline),
        "timeline": partial(_timeline, pipeline, bundle),
        "clip_score": partial(_clip_score, pipeline),
        "bare": partial(_bare, providers, request["threads"]),
    }


def _graph(bundle: Bundle, name: str, feeds: dict[str, Array]) -> Call:
    """One graph, with what a generation binds bound."""
    constants = {key: array for key, array in feeds.items() if key in CONSTANTS}
    engine = bundle.engine(name).bind(constants)
    return partial(engine, {key: array for key, array in feeds.items() if key not in constants})


def _picture(
    pipeline: Pipeline, _: object, *, prompt: str, seed: int, steps: int, batch: int = 1, **settings: Any
) -> Call:
    """From the prompt to pixels, with the noise that torch's generator draws for the seed."""
    settings |= {"num_inference_steps": steps, "num_images": batch, "seed": seed, "noise": "torch-cpu"}

    def draw() -> Outputs:
        pipeline.encoded.clear()  # its peers read the prompt each time
        return {"images": np.stack([np.asarray(picture.image) for picture in pipeline(prompt, **settings)])}

    return draw


def _timeline(pipeline: Pipeline, bundle: WatchedBundle, feeds: object, **parameters: Any) -> Call:
    """A picture, and when its engines ran: `names`, `starts` and `ends`, in seconds from its beginning."""
    draw = _picture(pipeline, feeds, **parameters)

    def timed() -> Outputs:
        bundle.spans.clear()
        started = time.perf_counter()
        draw()
        spans = [*bundle.spans, ("all", started, time.perf_counter())]
        names, starts, ends = zip(*spans, strict=True)
        return {"names": np.array(names), "starts": np.array(starts) - started, "ends": np.array(ends) - started}

    return timed


def _clip_score(pipeline: Pipeline, feeds: dict[str, Array], *, prompt: str) -> Call:
    """How well the pictures `images` fit the prompt, as `scores`."""
    images = [Image.fromarray(pixels) for pixels in feeds["images"]]
    return lambda: {"scores": np.array(clip_scores(pipeline, prompt, images))}


def _bare(providers: list[str], threads: int, feeds: dict[str, Array], *, model: str) -> Call:
    """An ONNX file in ONNX Runtime with inputs and outputs on the device: what it can do at best."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads  # by itself it takes all cores, also those that the process may not use
    session = onnxruntime.InferenceSession(Path(model), options, providers=providers)
    device = "cuda" if providers[0].startswith(("CUDA", "Tensorrt", "NvTensorRt")) else "cpu"
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
    for node in session.get_outputs():
        binding.bind_output(node.name, device)

    def run() -> Outputs:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return {}

    return run


def versions() -> dict[str, str]:
    """See `serve`."""
    return {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
