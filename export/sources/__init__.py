"""Where weights come from, a module a kind."""

from __future__ import annotations

from pathlib import Path

from edgediffusion.engines.errors import ExportError

from .base import MODEL_INDEX, Config, EditedPart, Part, Source, read_json, select
from .folder import PICKLES, FolderPart, open_folder
from .single_file import open_single_file

__all__ = ["MODEL_INDEX", "Config", "EditedPart", "FolderPart", "Part", "Source", "open_source", "read_json", "select"]


SAFETENSORS = ".safetensors"
_CONVERT = (
    "import torch; from safetensors.torch import save_file; d = torch.load({!r}, 'cpu', weights_only=True); "
    "d = d.get('state_dict', d); save_file({{k: v.clone() for k, v in d.items() if hasattr(v, 'shape')}}, {!r})"
)


def open_source(source: Path) -> Source:
    """Look at the checkpoint `source`; no weights are read.

    Raises:
        ExportError: there is none.
    """
    if source.suffix == SAFETENSORS and source.is_file():
        return open_single_file(source)
    if source.suffix in PICKLES and source.is_file():
        raise ExportError(
            f"{source}: pickled weights; loading them can run code, so they are not read; if you trust them, convert "
            f'them with: python -c "{_CONVERT.format(str(source), str(source.with_suffix(SAFETENSORS)))}"'
        )
    if not source.is_dir():
        raise ExportError(
            f"{source}: no such checkpoint; wanted a folder in diffusers' layout, with {MODEL_INDEX}, "
            f"or a {SAFETENSORS} file in the original one"
        )
    return open_folder(source)
