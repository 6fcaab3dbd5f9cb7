"""A bundle becomes a checkpoint that diffusers opens by itself: the halves of the VAE together, no graphs."""

from __future__ import annotations

import json
from pathlib import Path

from edgediffusion.engines.errors import ExportError
from edgediffusion.runtime.families import FAMILIES
from edgediffusion.runtime.golden import GOLDEN
from edgediffusion.runtime.manifest import MANIFEST

from .sources import MODEL_INDEX, Config, open_source
from .staging import BUNDLE, staging
from .weights import FLOATS, Weight, write_tensors

VAE_HALVES = ("vae_decoder", "vae_encoder")


def to_diffusers(bundle: Path, out: Path) -> None:
    """Write the weights and settings of `bundle` to the new folder `out`, in diffusers' layout, tensor for tensor.

    Raises:
        UsageError: `out` is taken, or cannot be made.
        ExportError: `bundle` is none, or its weights are integers, which diffusers would not scale.
    """
    source = open_source(bundle)
    files = {component.folder: component.weights for component in FAMILIES[source.family].components}
    weights: dict[str, dict[str, Weight]] = {}
    configs: dict[str, Config] = {}
    for name, part in source.parts.items():
        folder = "vae" if name in VAE_HALVES else name
        configs[folder] = part.config
        weights.setdefault(folder, {}).update(part.weights)
        files.setdefault(folder, files[name])
        if integers := [key for key, weight in part.weights.items() if weight.dtype not in FLOATS]:
            raise ExportError(
                f"{part.where}: {len(integers)} weights are integers, first {integers[0]}; "
                "export it without --weights int8"
            )
    with staging(out.resolve(), keep=False) as work:
        for name, content in source.settings.items():
            if name != MANIFEST and not name.startswith(f"{GOLDEN}/"):
                _write(work / BUNDLE / name, content)
        _write(work / BUNDLE / MODEL_INDEX, json.dumps(source.index, indent=2).encode())
        for folder, config in configs.items():
            _write(work / BUNDLE / folder / "config.json", json.dumps(config, indent=2).encode())
            write_tensors(work / BUNDLE / folder / files[folder], weights[folder])


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
