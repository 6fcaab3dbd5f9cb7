"""A folder in diffusers' layout, or a bundle, which is one too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgediffusion.engines.errors import ExportError
from edgediffusion.runtime.manifest import MANIFEST

from ..weights import Weight, read_header
from .base import MODEL_INDEX, Config, Source, read_json

SETTINGS = (
    MANIFEST,
    "README.md",
    "LICENSE*",
    "scheduler/scheduler_config.json",
    "feature_extractor/preprocessor_config.json",
    "tokenizer*/*.json",
    "tokenizer*/merges.txt",
)
# The name of the weights before `.safetensors` or the number of a shard, and the index of the shards; best first.
STEMS = {
    "model": "model.safetensors.index.json",
    "model.fp16": "model.safetensors.index.fp16.json",
    "diffusion_pytorch_model": "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.fp16": "diffusion_pytorch_model.safetensors.index.fp16.json",
}
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_CONVERT = (
    "from diffusers import DiffusionPipeline as P; P.from_pretrained({!r}, use_safetensors=False).save_pretrained({!r})"
)


@dataclass(frozen=True)
class FolderPart:
    """A component in a folder of its own: config.json, and its weights whole, in shards, or as the fp16 variant."""

    where: Path

    @cached_property
    def config(self) -> Config:
        """What config.json says."""
        return read_json(self.where / "config.json")

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files that hold the weights."""
        for stem, index in STEMS.items():
            single = self.where / f"{stem}.safetensors"
            if files := (single,) if single.is_file() else self._shards(stem, index):
                return files
        if pickles := sorted(path.name for path in self.where.iterdir() if path.suffix in PICKLES):
            parent = self.where.parent
            convert = _CONVERT.format(str(parent), f"{parent}-safetensors")
            raise ExportError(
                f"{self.where}: only pickled weights ({', '.join(pickles)}); loading them can run code, so they are "
                f'not read; if you trust them, convert them with: python -c "{convert}"'
            )
        raise ExportError(f"{self.where}: no weights here (model.safetensors or diffusion_pytorch_model.safetensors)")

    def _shards(self, stem: str, index_name: str) -> tuple[Path, ...]:
        """What the index lists; without one, the files that number themselves."""
        index = self.where / index_name
        if index.is_file():
            names = {str(name) for name in read_json(index).get("weight_map", {}).values()}
            if strays := sorted(name for name in names if Path(name).name != name):
                raise ExportError(f"{index}: {strays[0]!r} is outside of the folder; only files beside it are read")
        else:
            found = [path.name for path in self.where.glob(f"{stem}-*-of-*.safetensors")]
            total = max((int(number[1]) for name in found if (number := re.search(r"-of-(\d+)", name))), default=0)
            names = {f"{stem}-{i:05}-of-{total:05}.safetensors" for i in range(1, total + 1)}
        if lacking := sorted(name for name in names if not (self.where / name).is_file()):
            raise ExportError(f"{self.where}: shard {lacking[0]} is missing; download the checkpoint again")
        return tuple(self.where / name for name in sorted(names))

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """Every tensor under the name that the file gives it."""
        return {key: tensor for path in self.files for key, tensor in read_header(path).items()}


def open_folder(folder: Path) -> Source:
    """Look at a checkpoint in diffusers' layout; no weights are read.

    Raises:
        ExportError: it is not a diffusers folder.
    """
    if not (folder / MODEL_INDEX).is_file():
        raise ExportError(f"{folder}: not a diffusers folder ({MODEL_INDEX} is missing)")
    return Source(
        name=folder.resolve().name,
        index=read_json(folder / MODEL_INDEX),
        parts={path.parent.name: FolderPart(path.parent) for path in sorted(folder.glob("*/config.json"))},
        settings={
            path.relative_to(folder).as_posix(): path.read_bytes()
            for pattern in SETTINGS
            for path in sorted(folder.glob(pattern))
        },
    )
