"""How each family of `edgediffusion.runtime.families` is exported: the same names, a module each."""

from __future__ import annotations

from .base import Network, Sample, Seen
from .sd1 import SD1

FAMILIES: dict[str, dict[str, Network]] = {"sd1": SD1}

__all__ = ["FAMILIES", "Network", "Sample", "Seen"]
