"""The cases, in the order in which they run. To add one: a function of the `Session`, and a line here."""

from __future__ import annotations

from collections.abc import Callable

from ..session import Session
from .components import text_encoder, unet, vae_decoder
from .disk import disk
from .energy import energy
from .growth import growth
from .picture import loop, picture, throughput
from .processes import build, load, memory, start
from .quality import quality
from .roofline import roofline

CASES: dict[str, Callable[[Session], None]] = {
    "disk": disk,
    "start": start,
    "load": load,
    "build": build,
    "memory": memory,
    "text_encoder": text_encoder,
    "unet": unet,
    "vae_decoder": vae_decoder,
    "loop": loop,
    "picture": picture,
    "throughput": throughput,
    "growth": growth,
    "energy": energy,
    "quality": quality,
    "roofline": roofline,
}
