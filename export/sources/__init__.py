"""Where weights come from, a module a kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgediffusion.engines.errors import ExportError
from edgediffusion.runtime.families import CONTROLNET_FOLDERS

from ..options import Options
from ..weights import read_header
from .base import MODEL_INDEX, SAFETENSORS, Config, EditedPart, Part, Source, pickled, read_json, select
from .embedding import add_embeddings
from .folder import PICKLES, FolderPart, open_folder
from .hub import REPOSITORY, download
from .lora import fuse_loras
from .single_file import CONTROLNET, CONTROLNETS, VAE, controlnet_part, open_single_file, vae_part

__all__ = [
    "MODEL_INDEX",
    "Config",
    "EditedPart",
    "FolderPart",
    "Part",
    "Source",
    "gather",
    "open_source",
    "read_json",
    "select",
]

VAE_FOLDERS = ("vae", "vae_encoder", "vae_decoder")  # a bundle has the two halves


def gather(source: str | Path, options: Options) -> Source:
    """The checkpoint `source` with the VAE, UNet, LoRAs and textual inversions of `options` in their places.

    Raises:
        ExportError: see `open_source`, `lora.fuse_loras` and `embedding.add_embeddings`.
    """
    checkpoint = open_source(source, options.revision)
    for folders, place in ((VAE_FOLDERS, options.vae), (("unet",), options.unet)):
        if place is not None:
            checkpoint = _replaced(checkpoint, folders, place)
    if len(options.controlnets) > len(CONTROLNET_FOLDERS):
        raise ExportError(f"{len(options.controlnets)} ControlNets; a bundle has up to {len(CONTROLNET_FOLDERS)}")
    for folder, place in zip(CONTROLNET_FOLDERS, options.controlnets, strict=False):
        checkpoint = _replaced(checkpoint, (folder,), place)
    return add_embeddings(fuse_loras(checkpoint, options.loras), options.embeddings)


def open_source(source: str | Path, revision: str | None = None) -> Source:
    """Look at the checkpoint `source`: a folder, a file, or else a repository of the hub. No weights are read.

    Raises:
        ExportError: there is none.
    """
    path = _locate(source, revision)
    opened = open_single_file(path) if path.is_file() else open_folder(path)
    return opened if Path(source).exists() else replace(opened, name=str(source))


def _locate(source: str | Path, revision: str | None = None) -> Path:
    path = Path(source)
    if path.is_file() and path.suffix in PICKLES:
        raise pickled(path)
    if path.is_dir() or (path.is_file() and path.suffix == SAFETENSORS):
        return path
    if REPOSITORY.fullmatch(str(source)) and not path.exists():
        return download(str(source), revision)
    raise ExportError(
        f"{source}: no such checkpoint; wanted a folder in diffusers' layout, with {MODEL_INDEX}, "
        f"a {SAFETENSORS} file in the original one, or a repository of the hub, owner/name"
    )


def _replaced(source: Source, folders: tuple[str, ...], place: str) -> Source:
    """`source` with the component that is called `folders[0]`, or is in all of the others, taken from `place`."""
    name = folders[0]
    path = _locate(place)
    lone = _lone(path, name, source) if path.is_file() else None
    if lone is not None:
        found: dict[str, Part] = {name: lone}
    elif path.is_dir() and not (path / MODEL_INDEX).is_file() and (path / "config.json").is_file():
        found = {name: FolderPart(path)}
    else:
        found = {folder: part for folder, part in open_source(path).parts.items() if folder in folders}
    if not found:
        raise ExportError(f"{place}: no {name} there; wanted its folder, or a checkpoint that has one")
    kept = {folder: part for folder, part in source.parts.items() if folder not in folders}
    kind = next(iter(found.values())).config.get("_class_name")
    return replace(source, parts=kept | found, index=source.index | {name: ["diffusers", kind]})


def _lone(path: Path, name: str, source: Source) -> Part | None:
    """The component in a file of its own, which leaves to the checkpoint what its shapes don't tell."""
    keys = read_header(path).keys()
    if name in CONTROLNET_FOLDERS and any(key.startswith(CONTROLNETS) for key in keys):
        prefix = CONTROLNET if any(key.startswith(CONTROLNET) for key in keys) else ""
        return controlnet_part(path, prefix, source.parts["unet"].config.get("attention_head_dim", 8))
    if name == "vae" and not any(key.startswith("model.") for key in keys):
        own = next(source.parts[folder].config for folder in VAE_FOLDERS if folder in source.parts)
        prefix = VAE if any(key.startswith(VAE) for key in keys) else ""
        return vae_part(path, prefix, own["scaling_factor"])
    return None
