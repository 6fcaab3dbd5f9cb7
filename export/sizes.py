"""What a static export fixes: the free dimensions of each component, as the runtime asks for them."""

from __future__ import annotations

from collections.abc import Mapping

from edgediffusion.engines.errors import ExportError, UsageError
from edgediffusion.runtime.families import FAMILIES as RUNTIME_FAMILIES
from edgediffusion.runtime.manifest import Static
from edgediffusion.runtime.tokenizer import MAX_LENGTH

from .families import FAMILIES
from .families.vae import pixels_per_latent
from .sources import Part


def static_sizes(family: str, parts: Mapping[str, Part], static: Static) -> dict[str, dict[str, int]]:
    """Component -> size of each free dimension of its graphs.

    The UNet has a row for each branch of guidance: that of pix2pix three for a picture, others two, and one where the
    scale is an input of the UNet. A prompt is one chunk.

    Raises:
        UsageError: latents cannot have that size.
        ExportError: the VAE's config does not say what that is.
    """
    vae = parts["vae_decoder"]
    try:
        factor = pixels_per_latent(vae.config)
    except KeyError as error:
        raise ExportError(f"{vae.where / 'config.json'}: {error} is missing; download it again") from None
    for name, size in (("height", static.height), ("width", static.width)):
        if size % factor:
            nearest = max(1, round(size / factor)) * factor
            raise UsageError(f"--static {static}: {name} {size}; wanted a multiple of {factor}, such as {nearest}")
    distilled = parts["unet"].config.get("time_cond_proj_dim") is not None
    rows = static.batch * (1 if distilled else RUNTIME_FAMILIES[family].branches)
    sizes = {}
    for name in parts:
        network = FAMILIES[family][name]
        step = 1 if network.pixels else factor
        sizes[name] = {
            "batch": rows if network.batch is None else network.batch,
            "height": static.height // step,
            "width": static.width // step,
            "sequence_length": MAX_LENGTH,
        }
    return sizes
