"""TensorRT-RTX: the backend of `tensorrt`, over the other package."""

from __future__ import annotations

import functools

from .tensorrt import open_engine as _open_engine

open_engine = functools.partial(_open_engine, backend="tensorrt_rtx")
