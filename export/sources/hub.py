"""A repository of the Hugging Face hub: what we read of it, downloaded into the hub's own cache."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from edgediffusion.engines.errors import BackendUnavailable, ExportError, one_line

from .base import MODEL_INDEX
from .folder import SETTINGS, STEMS

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
COMPONENTS = (
    "text_encoder",
    "text_encoder_2",
    "unet",
    "vae",
    "image_encoder",
    "safety_checker",
    ".",
)  # ".": a repository of one


def download(repository: str, revision: str | None) -> Path:
    """The folder in the cache with the newest files of `repository`, or with those cached where there is no network.

    Raises:
        ExportError: it does not exist, needs a permission, or cannot be reached and is not cached.
        BackendUnavailable: huggingface-hub is not installed.
    """
    try:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise BackendUnavailable(f"the hub needs {error.name}", "pip install 'edgediffusion[export]'") from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # without a network it would warn of each try
    try:
        names = HfApi().list_repo_files(repository, revision=revision)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted(names)))
    except HfHubHTTPError as error:
        reason = one_line(error.server_message or error)
        raise ExportError(
            f"{repository}: the hub refuses it ({type(error).__name__}: {reason}); "
            "check its name and revision, or accept its licence there and run: hf auth login"
        ) from error
    except Exception:  # no network, which each version of the hub's client says in another way: the cache will do
        pass
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError) as error:
        raise ExportError(
            f"{repository}: no such folder, the hub cannot be reached, and its cache doesn't have it; "
            "download it where there is a network, and name the folder"
        ) from error


def wanted(names: Collection[str]) -> list[str]:
    """Those of a repository's files that an export reads: settings, and one form of each component's weights."""
    settings = (MODEL_INDEX, "config.json", "*/config.json", *SETTINGS)
    chosen = [name for name in names if any(PurePosixPath(f"/{name}").match(f"/{pattern}") for pattern in settings)]
    for folder in COMPONENTS:
        inside = [name for name in names if PurePosixPath(name).parent == PurePosixPath(folder)]
        forms = ([n for n in inside if _holds(PurePosixPath(n).name, stem, index)] for stem, index in STEMS.items())
        chosen += next(filter(None, forms), [])
    return chosen


def _holds(name: str, stem: str, index: str) -> bool:
    return name == index or re.fullmatch(rf"{re.escape(stem)}(-\d+-of-\d+)?\.safetensors", name) is not None
