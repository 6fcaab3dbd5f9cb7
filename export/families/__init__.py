"""How each family of `edgediffusion.runtime.families` is exported: its components, in the order in which they need
one another. What a component's config can say is not said here."""

from __future__ import annotations

from .base import Network, Sample, Seen, Variant
from .controlnet import denoisers
from .images import IMAGE_ENCODER, SAFETY_CHECKER
from .text import TEXT_ENCODER_2, text_encoder
from .vae import VAE

SD = {
    "text_encoder": text_encoder(hidden_states=True),
    **VAE,
    **denoisers(),
    "image_encoder": IMAGE_ENCODER,
    "safety_checker": SAFETY_CHECKER,
}
SDXL = {
    "text_encoder": text_encoder(hidden_states=True),
    "text_encoder_2": TEXT_ENCODER_2,
    **VAE,
    **denoisers(),
    "image_encoder": IMAGE_ENCODER,
}
SDXL_REFINER = {
    "text_encoder_2": TEXT_ENCODER_2,
    **VAE,
    **denoisers(time_ids=5),
    "image_encoder": IMAGE_ENCODER,
}

FAMILIES: dict[str, dict[str, Network]] = {
    "lcm": SD,
    "sd": SD,
    "sd_inpaint": SD,
    "sd_pix2pix": SD,
    "sdxl": SDXL,
    "sdxl_inpaint": SDXL,
    "sdxl_refiner": SDXL_REFINER,
}

__all__ = ["FAMILIES", "Network", "Sample", "Seen", "Variant"]
