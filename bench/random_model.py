"""Bundles of random weights in the real shape of a model, so that anyone can measure without a checkpoint."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs
import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]

from edgediffusion.export.families import FAMILIES
from edgediffusion.export.options import Options
from edgediffusion.export.sources.original.tokenizer import tokenizer_files
from edgediffusion.export.weights import write_tensors
from edgediffusion.export.write_bundle import export_bundle
from edgediffusion.runtime.families import FAMILIES as RUNTIME_FAMILIES

from .random_configs import INDICES, MODELS, SCHEDULER
from .report import installed_versions

_DECIDING = ("edgediffusion", "torch", "diffusers", "transformers", "onnx", "onnxscript")


def random_bundle(
    model: str, dtype: str = "float32", *, report: Callable[[str], None] = lambda line: None, cache: Path | None = None
) -> Path:
    """The bundle of `model`, a name in `MODELS`, whose graphs compute in `dtype`; exported unless `cache` has it.

    `cache` is by default the user's.
    What decides its content is in the name of its folder: model, dtype, and a digest of settings and versions. The
    checkpoint lies beside it, as `checkpoint`.

    Raises:
        UsageError, ExportError: see `export_bundle`; then nothing stays.
    """
    versions = installed_versions(_DECIDING)
    deciding = json.dumps([MODELS[model], SCHEDULER, INDICES, versions], sort_keys=True)
    cache = platformdirs.user_cache_path("edgediffusion") if cache is None else cache
    folder = cache / "random" / f"{model}-{dtype}-{hashlib.sha256(deciding.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / "lock"):
        bundle, checkpoint = folder / "bundle", folder / "checkpoint"
        if not bundle.exists():
            report(f"exporting random weights in the shape of {model} to {folder}, which is done once")
            if not checkpoint.exists():
                write_checkpoint(model, checkpoint)
            export_bundle(checkpoint, bundle, Options(dtype={"": dtype}), report=report)
    return bundle


@dataclass(frozen=True)
class Random:
    """A weight that is drawn when it is written: such that values keep their size from layer to layer."""

    file: Path
    shape: tuple[int, ...]
    dtype: str = "F16"

    def read(self) -> torch.Tensor:
        """Ones for the scale of a norm (the last part of a name is in `file`), zeros for a bias."""
        if len(self.shape) < 2:
            return torch.full(self.shape, float(self.file.name == "weight"), dtype=torch.float16)
        generator = torch.Generator().manual_seed(zlib.crc32(self.file.as_posix().encode()))
        values = torch.randn(self.shape, generator=generator) / math.sqrt(math.prod(self.shape[1:]))
        return values.half()


def write_checkpoint(model: str, folder: Path) -> Path:
    """Write random float16 weights and the settings of `model` to the new `folder`, whole or not at all; return it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        _write_checkpoint(model, Path(unfinished) / folder.name)
        return (Path(unfinished) / folder.name).rename(folder)


def _write_checkpoint(model: str, folder: Path) -> None:
    family, configs = MODELS[model]
    record = RUNTIME_FAMILIES[family]
    folder.mkdir()
    index = {"_class_name": record.pipeline_classes[0], "scheduler": ["diffusers", SCHEDULER["_class_name"]]}
    index |= INDICES[family]
    for component in record.components:
        if component.folder not in configs:
            continue
        config = configs[component.folder]
        with init_empty_weights():
            state = FAMILIES[family][component.folder].module(config).state_dict()
        target = folder / component.folder
        target.mkdir()
        (target / "config.json").write_text(json.dumps(config))
        weights = {key: Random(Path(key.replace(".", "/")), tuple(value.shape)) for key, value in state.items()}
        write_tensors(target / component.weights, weights)
    for tokenizer in record.tokenizers:
        (folder / tokenizer).mkdir()
        for name, content in tokenizer_files("<|endoftext|>").items():
            (folder / tokenizer / name).write_bytes(content)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(index))
