"""Where weights come from: a diffusers folder, or a bundle, which is one too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgediffusion.engines.errors import ExportError, UnknownName
from edgediffusion.runtime.families import FAMILIES
from edgediffusion.runtime.manifest import MANIFEST, Manifest

from .weights import TORCH_DTYPES, StoredTensor, read_header

MODEL_INDEX = "model_index.json"
Config = dict[str, Any]

_CONVERT = (
    "from diffusers import DiffusionPipeline as P; P.from_pretrained({!r}, use_safetensors=False).save_pretrained({!r})"
)


@dataclass(frozen=True)
class Source:
    """A checkpoint in diffusers' layout. `family` is a name of `FAMILIES`, `index` its model_index.json."""

    folder: Path
    family: str
    index: Config

    def license(self) -> str:
        """What the manifest or the front matter of the model card says; "unknown" where neither does."""
        if (self.folder / MANIFEST).is_file():
            return Manifest.read(self.folder).license
        card = self.folder / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else ""
        front_matter = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        found = re.search(r"^license: *['\"]?(.+?)['\"]? *$", front_matter[1], re.MULTILINE) if front_matter else None
        return found[1] if found else "unknown"

    def component(self, folders: Iterable[str]) -> Path | None:
        """The first of `folders` that the checkpoint has; a bundle has `vae_decoder/` where others have `vae/`."""
        found = (self.folder / name for name in folders if (self.folder / name / "config.json").is_file())
        return next(found, None)


def open_source(folder: Path) -> Source:
    """Look at a checkpoint; no weights are read.

    Raises:
        ExportError: it is not a diffusers folder.
        UnknownName: it belongs to a family that cannot be exported.
    """
    if not folder.is_dir():
        raise ExportError(f"{folder}: no such folder; wanted a checkpoint in diffusers' layout, with {MODEL_INDEX}")
    if not (folder / MODEL_INDEX).is_file():
        raise ExportError(f"{folder}: not a diffusers folder ({MODEL_INDEX} is missing)")
    index = read_json(folder / MODEL_INDEX)
    pipeline_class = str(index.get("_class_name"))
    known = {name: family for family, record in FAMILIES.items() for name in record.pipeline_classes}
    if pipeline_class not in known:
        raise UnknownName(f"pipeline class in {folder / MODEL_INDEX}", pipeline_class, known)
    return Source(folder, known[pipeline_class], index)


def read_json(path: Path) -> Config:
    """The object in the JSON file `path`; ExportError when it is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"{path}: cannot be read ({error})") from None
    if not isinstance(record, dict):
        raise ExportError(f"{path}: got {type(record).__name__}, wanted a JSON object")
    return record


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of one component: of its only weights file, of its shards, or of its fp16 variant.

    Raises:
        ExportError: there is no safetensors file, or one that is broken.
    """
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        tensors |= read_header(path)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights of the component in `folder`."""
    for stem in ("model", "diffusion_pytorch_model"):
        for variant in ("", ".fp16"):
            single = folder / f"{stem}{variant}.safetensors"
            if single.is_file():
                return [single]
            if shards := sorted(folder.glob(f"{stem}{variant}-*-of-*.safetensors")):
                return shards
    if pickles := sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".ckpt", ".pt", ".pth")):
        parent = folder.parent
        convert = _CONVERT.format(str(parent), f"{parent}-safetensors")
        raise ExportError(
            f"{folder}: only pickled weights ({', '.join(pickles)}); loading them can run code, so they are not read; "
            f'if you trust them, convert them with: python -c "{convert}"'
        )
    raise ExportError(f"{folder}: no weights here (model.safetensors or diffusion_pytorch_model.safetensors)")


def select(
    tensors: dict[str, StoredTensor],
    shapes: dict[str, tuple[int, ...]],
    renames: Iterable[tuple[str, str]],
    skip: Iterable[str],
    folder: Path,
) -> dict[str, StoredTensor]:
    """The tensors of `folder` under the names in `shapes`, each one there and none left over.

    `renames` are regular expressions with their replacements, for older names; `skip` are regular expressions of keys
    that belong elsewhere.
    """
    renamed = {}
    for key, tensor in tensors.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        if not any(re.match(pattern, key) for pattern in skip):
            renamed[key] = tensor
    for what, keys in (("missing", shapes.keys() - renamed.keys()), ("left over", renamed.keys() - shapes.keys())):
        if keys:
            raise ExportError(
                f"{folder}: {len(keys)} weights {what}, first {min(keys)}; "
                "config.json and weights do not belong together"
            )
    for key, tensor in renamed.items():
        if tensor.shape != shapes[key]:
            raise ExportError(f"{folder}: {key} has shape {tensor.shape}, config.json makes it {shapes[key]}")
        if tensor.dtype not in TORCH_DTYPES:
            raise ExportError(f"{folder}: {key} has dtype {tensor.dtype}; known: {', '.join(sorted(TORCH_DTYPES))}")
    return renamed
