"""TensorRT from 8.6 to 11, and TensorRT-RTX: one API but for what this table says.

Sources: https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/ (8 to 10, 10 to 11); what TensorRT 8.6.0
and TensorRT-RTX 1.7 showed. TensorRT 10 and 11 were never run by us.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .errors import BackendUnavailable, one_line

_EVERYWHERE = frozenset({"workspace", "refit"})
# TensorRT-RTX times no kernels: it chooses them when it runs.
_ON_A_GPU = _EVERYWHERE | {"optimization_level", "timing_cache", "version_compatible", "hardware_compatible"}
_SINCE_10 = frozenset({"weight_stripped", "weight_streaming"})


@dataclass(frozen=True, kw_only=True)
class Version:
    """What one generation has.

    `strongly_typed`: a graph's own types are kept, else they are a hint and half precision wants a flag.
    `has_progress`: a build can be watched, and stopped. `options` are those of `BuildOptions` it can follow.
    `compute_capabilities` is what an engine is for unless told; empty where it is that of the GPU it was built on.
    `reads_axes`: its parser knows a Resize along some axes, see `onnx_scales`.
    `builder_bytes` of the host's memory go to the builder itself, whatever it builds.
    `user_managed`: contexts are told the size of the memory that they are given.
    """

    label: str
    options: frozenset[str]
    strongly_typed: bool = True
    has_progress: bool = True
    reads_axes: bool = True
    user_managed: bool = True
    compute_capabilities: str = ""
    builder_bytes: int = 0
    needs_gpu: bool = True


VERSIONS: dict[tuple[str, int], Version] = {
    ("tensorrt", 8): Version(
        label="TensorRT 8.6",
        options=_ON_A_GPU,
        strongly_typed=False,
        has_progress=False,
        reads_axes=False,
        user_managed=False,
        builder_bytes=2900 << 20,  # seen on an H100: kernels for every GPU, loaded at the start
    ),
    ("tensorrt", 10): Version(label="TensorRT 10", options=_ON_A_GPU | _SINCE_10),
    ("tensorrt", 11): Version(label="TensorRT 11", options=_ON_A_GPU | _SINCE_10),
    ("tensorrt_rtx", 1): Version(
        label="TensorRT-RTX",
        options=_EVERYWHERE | _SINCE_10 | {"compute_capability"},
        compute_capabilities="8.0+",
        needs_gpu=False,
    ),
}


@dataclass(frozen=True)
class TensorRT:
    """The module that is installed, and what it has."""

    module: Any
    version: Version

    @property
    def backend(self) -> str:
        """Its name among `registry.BACKENDS`."""
        return str(self.module.__name__)

    @property
    def number(self) -> str:
        """Its version, in full."""
        return str(self.module.__version__)

    def new_context(self, engine: Any) -> Any:
        """A context without memory of its own; None where TensorRT cannot make one."""
        if self.version.user_managed:
            return engine.create_execution_context(self.module.ExecutionContextAllocationStrategy.USER_MANAGED)
        return engine.create_execution_context_without_device_memory()

    def scratch_size(self, engine: Any) -> int:
        """Bytes that a context of `engine` needs while it runs."""
        return int(engine.device_memory_size_v2 if self.version.user_managed else engine.device_memory_size)

    def give_scratch(self, context: Any, address: int, size: int) -> None:
        """Have a context use this memory."""
        if self.version.user_managed:
            context.set_device_memory(address, size)
        else:
            context.device_memory = address

    def compute_capability(self, text: str) -> Any:
        """Its name for "8.9"; None where it has none."""
        return getattr(self.module.ComputeCapability, f"SM{text.replace('.', '')}", None)

    @property
    def known_compute_capabilities(self) -> list[str]:
        """Those that an engine can be built for without a GPU of the kind."""
        names = [name[2:] for name in vars(self.module.ComputeCapability) if name.startswith("SM")]
        return [f"{name[:-1]}.{name[-1]}" for name in sorted(names, key=int)]


def load(backend: str) -> TensorRT:
    """Import TensorRT or TensorRT-RTX.

    Raises:
        BackendUnavailable: it is not installed, does not start, or is of a version that nobody has described here.
    """
    extra = f"pip install 'edgediffusion[{backend.replace('_', '-')}]'"
    try:
        module: ModuleType = importlib.import_module(backend)
    except (ImportError, OSError) as error:
        raise BackendUnavailable(f"{backend} cannot be imported ({one_line(error)})", extra) from error
    version = VERSIONS.get((backend, int(module.__version__.split(".")[0])))
    if version is None:
        known = ", ".join(known.label for (name, _), known in VERSIONS.items() if name == backend)
        raise BackendUnavailable(f"{backend} {module.__version__} is installed, known: {known}", extra)
    return TensorRT(module, version)
