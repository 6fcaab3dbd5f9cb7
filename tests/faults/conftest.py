"""What goes wrong on machines that nobody watches. CI tries a sample of each; `pytest -m slow` tries the rest."""

from __future__ import annotations

from ..runtime.conftest import Opened, bundle_path, clip_tokenizer, opened
from ..runtime.packs.conftest import contents, pack_path

__all__ = ["Opened", "bundle_path", "clip_tokenizer", "contents", "opened", "pack_path"]
