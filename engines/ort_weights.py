"""The weights of a graph for the CUDA provider, as the graph wants them, given to ONNX Runtime before it opens it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import onnxruntime

from .onnx_file import TURNED, map_weights, turn
from .ort_arena import ARENA
from .packed import File
from .spec import Array

Weights = dict[str, onnxruntime.OrtValue]


def give_weights(model: File, options: onnxruntime.SessionOptions) -> Weights:
    """What a session is to be opened with: all weights, on the GPU, or what is turned, on the host.

    ONNX Runtime would copy the latter twice, 0.75 s for the UNet of Stable Diffusion 1.5.

    Raises:
        BundleError: see `map_weights`.
        OutOfMemory: the weights do not fit on the GPU.
    """
    on_gpu = ARENA.takes_weights
    mapped = {
        name: array
        for name, array in map_weights(model).items()
        if name.endswith(TURNED) or (on_gpu and array.dtype != bool)  # which DLPack has another number for
    }
    with ThreadPoolExecutor() as pool:
        arrays = zip(mapped, pool.map(_wanted, mapped, mapped.values()), strict=True)
        if on_gpu:
            weights = {name: ARENA.copied(array) for name, array in arrays}
            for name, value in weights.items():
                options.add_initializer(name, value)
        else:
            weights = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays}
            options.add_external_initializers(list(weights), list(weights.values()))
    return weights


def release(weights: Weights) -> None:
    """After the session was opened.

    Raises:
        NotTaken: it does not have what is turned.
    """
    turned = {name: weights.pop(name) for name in list(weights) if name.endswith(TURNED)}
    weights.clear()  # it reads itself what it wants elsewhere than on the GPU
    with ARENA.taken():
        turned.clear()


def _wanted(name: str, array: Array) -> Array:
    return turn(array) if name.endswith(TURNED) else array
