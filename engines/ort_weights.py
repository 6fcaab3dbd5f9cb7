"""The weights of a graph for the CUDA provider, as the graph wants them, given to ONNX Runtime before it opens it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime

from .cuda import HostMemory, Stream
from .errors import OutOfMemory
from .onnx_file import TURNED, map_weights, whole
from .ort_arena import ARENA
from .packed import File
from .spec import Array

Weights = dict[str, onnxruntime.OrtValue]
_PIECE = 4 << 20  # bytes that are copied at a time, in each of so many threads
_THREADS = min(8, os.cpu_count() or 1)


def give_weights(model: File, options: onnxruntime.SessionOptions) -> Weights:
    """What a session is to be opened with: all weights, on the GPU, or what is turned, on the host.

    ONNX Runtime copies the latter once more before they go there.

    Raises:
        BundleError: see `map_weights`.
        OutOfMemory: the weights do not fit on the GPU.
    """
    on_gpu = ARENA.takes_weights
    mapped = {
        name: weight
        for name, weight in map_weights(model).items()
        if name.endswith(TURNED) or (on_gpu and weight.dtype != bool)  # which DLPack has another number for
    }
    arrays = {name: whole(name, weight) for name, weight in mapped.items()}
    if on_gpu:
        weights = _room({name: array.view(mapped[name].dtype) for name, array in arrays.items()})
        _send({weights[name].data_ptr(): np.atleast_1d(array) for name, array in arrays.items()})
        for name, value in weights.items():
            options.add_initializer(name, value)
        return weights
    with ThreadPoolExecutor() as pool:
        turned = zip(mapped.items(), pool.map(np.ascontiguousarray, arrays.values()), strict=True)
        weights = {n: onnxruntime.OrtValue.ortvalue_from_numpy(array.view(w.dtype)) for (n, w), array in turned}
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


def _room(arrays: dict[str, Array]) -> Weights:
    weights: Weights = {}
    try:
        for name, array in arrays.items():
            weights[name] = ARENA.like(array)
    except OutOfMemory:
        weights.clear()  # at once, not when nobody looks at this frame any more
        raise
    return weights


def _send(arrays: dict[int, Array]) -> None:
    """Copy arrays to these addresses on the GPU."""
    largest_first = sorted(arrays.items(), key=lambda item: -item[1].nbytes)
    shares = [share for k in range(_THREADS) if (share := largest_first[k::_THREADS])]
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(_send_share, shares):
            pass


def _send_share(share: Sequence[tuple[int, Array]]) -> None:
    """As many rows at a time as there is room for, by memory that stays where it is, which the GPU reads by itself."""
    memory, stream = HostMemory(max(_PIECE, *(array[:1].nbytes for _, array in share))), Stream()
    for address, array in share:
        step = max(1, len(memory.content) // max(1, array[:1].nbytes))
        for begin in range(0, len(array), step):
            rows = array[begin : begin + step]
            np.copyto(memory.content[: rows.nbytes].view(array.dtype).reshape(rows.shape), rows)
            memory.send(rows.nbytes, address, stream)
            stream.wait()
            address += rows.nbytes
