"""What a checkpoint is, wherever it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgediffusion.engines.errors import ExportError, UnknownName
from edgediffusion.engines.json_object import parse_object
from edgediffusion.runtime.families import FAMILIES
from edgediffusion.runtime.manifest import MANIFEST

from ..weights import FLOATS, Weight

MODEL_INDEX = "model_index.json"
SAFETENSORS = ".safetensors"
_CONVERT = (
    "import torch; from safetensors.torch import save_file; d = torch.load({!r}, 'cpu', weights_only=True); "
    "d = d.get('state_dict', d.get('string_to_param', d)); "
    "save_file({{k: v.detach().clone() for k, v in d.items() if hasattr(v, 'shape')}}, {!r})"
)
Config = dict[str, Any]


class Part(Protocol):
    """One component of a checkpoint. Nothing is read before it is asked for.

    `where` names it in messages, `files` are those that its weights come from. `config` and `weights` raise ExportError
    where they cannot be read.
    """

    @property
    def where(self) -> Path: ...  # noqa: D102
    @property
    def config(self) -> Config: ...  # noqa: D102
    @property
    def weights(self) -> Mapping[str, Weight]: ...  # noqa: D102
    @property
    def files(self) -> tuple[Path, ...]: ...  # noqa: D102


@dataclass(frozen=True)
class EditedPart:
    """A component whose weights were put together here."""

    where: Path
    config: Config
    weights: Mapping[str, Weight]
    files: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Source:
    """An opened checkpoint.

    `index` is its model_index.json, `parts` its components by folder. `settings` holds the files that belong to none of
    them, by their path in diffusers' layout: scheduler, tokenizers, model card.
    """

    name: str
    index: Config
    parts: Mapping[str, Part]
    settings: Mapping[str, bytes]

    @property
    def family(self) -> str:
        """The first family that has the pipeline class and needs nothing that is null in `index`; or UnknownName."""
        pipeline_class = str(self.index.get("_class_name"))
        families = {name: family for name, family in FAMILIES.items() if pipeline_class in family.pipeline_classes}
        if not families:
            known = {name for family in FAMILIES.values() for name in family.pipeline_classes}
            raise UnknownName(f"pipeline class in {MODEL_INDEX} of {self.name}", pipeline_class, known)
        absent = {name for name, kind in self.index.items() if kind == [None, None]}
        whole = (name for name, family in families.items() if absent.isdisjoint(family.required))
        return next(whole, next(iter(families)))

    def folder(self, name: str) -> dict[str, bytes]:
        """The settings in the folder `name`, by file name."""
        inside = (path for path in self.settings if path.startswith(f"{name}/"))
        return {path.removeprefix(f"{name}/"): self.settings[path] for path in inside}

    def license(self) -> str:
        """What the manifest or the front matter of the model card says; "unknown" where neither does."""
        if MANIFEST in self.settings:
            return str(parse_json(self.settings[MANIFEST], MANIFEST).get("license", "unknown"))
        card = self.settings.get("README.md", b"").decode(errors="replace").replace("\r\n", "\n")
        front_matter = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
        found = re.search(r"^license: *['\"]?(.+?)['\"]? *$", front_matter[1], re.MULTILINE) if front_matter else None
        return found[1] if found else "unknown"

    def component(self, folders: Iterable[str]) -> Part | None:
        """The first of `folders` that the checkpoint has; a bundle has `vae_decoder/` where others have `vae/`."""
        return next((self.parts[name] for name in folders if name in self.parts), None)


def pickled(path: Path) -> ExportError:
    """Why the file `path` is not read, and the command that makes a safetensors file of it."""
    command = _CONVERT.format(str(path), str(path.with_suffix(SAFETENSORS)))
    return ExportError(
        f"{path}: pickled weights; loading them can run code, so they are not read; if you trust them, convert them "
        f'with: python -c "{command}"'
    )


def read_json(path: Path) -> Config:
    """The object in the JSON file `path`; ExportError when it is none."""
    try:
        return parse_json(path.read_bytes(), path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error})") from None


def parse_json(text: bytes, name: str | Path) -> Config:
    """The object in the JSON `text`; ExportError, which calls it `name`, when it is none."""
    try:
        return parse_object(text)
    except ValueError as error:
        raise ExportError(f"{name}: cannot be read ({error})") from None


def select(
    part: Part, shapes: Mapping[str, tuple[int, ...]], renames: Iterable[tuple[str, str]], skip: Iterable[str]
) -> dict[str, Weight]:
    """The weights of `part` under the names in `shapes`, each one there and none left over.

    `renames` are regular expressions with their replacements, for older names; `skip` are regular expressions of keys
    that belong elsewhere.
    """
    renamed = {}
    for key, weight in part.weights.items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        if not any(re.match(pattern, key) for pattern in skip):
            renamed[key] = weight
            if weight.dtype not in FLOATS:
                raise ExportError(
                    f"{part.where}: {key} has dtype {weight.dtype}; known: {', '.join(sorted(FLOATS))}; "
                    "export the checkpoint that it was made from"
                )
    for what, keys in (("missing", shapes.keys() - renamed.keys()), ("left over", renamed.keys() - shapes.keys())):
        if keys:
            raise ExportError(
                f"{part.where}: {len(keys)} weights {what}, first {min(keys)}; "
                "config.json and weights do not belong together"
            )
    for key, weight in renamed.items():
        if weight.shape != shapes[key]:
            raise ExportError(f"{part.where}: {key} has shape {weight.shape}, config.json makes it {shapes[key]}")
    return renamed
