"""A folder in diffusers' layout, or a bundle, which is one too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgediffusion.engines.errors import ExportError, UnknownName
from edgediffusion.runtime.families import FAMILIES

from ..weights import Weight, read_header
from .base import MODEL_INDEX, Config, Source, read_json

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
        for stem in ("model", "diffusion_pytorch_model"):
            for variant in ("", ".fp16"):
                single = self.where / f"{stem}{variant}.safetensors"
                if single.is_file():
                    return (single,)
                if shards := sorted(self.where.glob(f"{stem}{variant}-*-of-*.safetensors")):
                    return tuple(shards)
        if pickles := sorted(p.name for p in self.where.iterdir() if p.suffix in (".bin", ".ckpt", ".pt", ".pth")):
            parent = self.where.parent
            convert = _CONVERT.format(str(parent), f"{parent}-safetensors")
            raise ExportError(
                f"{self.where}: only pickled weights ({', '.join(pickles)}); loading them can run code, so they are "
                f'not read; if you trust them, convert them with: python -c "{convert}"'
            )
        raise ExportError(f"{self.where}: no weights here (model.safetensors or diffusion_pytorch_model.safetensors)")

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """Every tensor under the name that the file gives it."""
        return {key: tensor for path in self.files for key, tensor in read_header(path).items()}


def open_folder(folder: Path) -> Source:
    """Look at a checkpoint in diffusers' layout; no weights are read.

    Raises:
        ExportError: it is not a diffusers folder.
        UnknownName: it belongs to a family that cannot be exported.
    """
    if not (folder / MODEL_INDEX).is_file():
        raise ExportError(f"{folder}: not a diffusers folder ({MODEL_INDEX} is missing)")
    index = read_json(folder / MODEL_INDEX)
    parts = {path.parent.name: FolderPart(path.parent) for path in sorted(folder.glob("*/config.json"))}
    return Source(name=folder.resolve().name, settings=folder, family=_family(index, folder), index=index, parts=parts)


def _family(index: Config, folder: Path) -> str:
    """The first family that has the pipeline class, and needs nothing that is null in `index`."""
    pipeline_class = str(index.get("_class_name"))
    families = {name: family for name, family in FAMILIES.items() if pipeline_class in family.pipeline_classes}
    if not families:
        known = {name for family in FAMILIES.values() for name in family.pipeline_classes}
        raise UnknownName(f"pipeline class in {folder / MODEL_INDEX}", pipeline_class, known)
    absent = {name for name, kind in index.items() if kind == [None, None]}
    whole = (name for name, family in families.items() if absent.isdisjoint(family.required))
    return next(whole, next(iter(families)))
