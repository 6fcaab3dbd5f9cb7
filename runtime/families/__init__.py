"""The model families that can be run. To add one: a module here, a module of the same name in `export/families/`."""

from __future__ import annotations

from .base import Component, Family
from .sd1 import SD1

FAMILIES: dict[str, Family] = {"sd1": SD1}

__all__ = ["FAMILIES", "Component", "Family"]
