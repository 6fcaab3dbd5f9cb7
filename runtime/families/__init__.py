"""The model families that can be run. To add one: a record here, and one of the same name in `export/families/`."""

from __future__ import annotations

from .base import CONTROLNET_FOLDERS, Component, Family
from .sd import LCM, SD, SD_INPAINT, SD_PIX2PIX
from .sdxl import SDXL, SDXL_INPAINT, SDXL_REFINER

FAMILIES: dict[str, Family] = {
    "lcm": LCM,
    "sd": SD,
    "sd_inpaint": SD_INPAINT,
    "sd_pix2pix": SD_PIX2PIX,
    "sdxl": SDXL,
    "sdxl_inpaint": SDXL_INPAINT,
    "sdxl_refiner": SDXL_REFINER,
}

__all__ = ["CONTROLNET_FOLDERS", "FAMILIES", "Component", "Family"]
