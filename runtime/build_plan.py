"""Which engines a bundle needs to draw pictures of some sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.profile import Profile
from edgediffusion.engines.spec import GraphSpec

from .families import Family
from .latents import LatentSpace
from .manifest import Manifest
from .tokenizer import MAX_LENGTH

Range = tuple[int, int, int]  # least, best, most


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be drawn: sizes in pixels, width and height, and from how many pictures at a time to how many.

    `prompt_chunks` is how many chunks of 77 tokens a prompt may have. `dynamic` is any size between the least and the
    largest, best at the first.
    """

    sizes: tuple[tuple[int, int], ...]
    batch: tuple[int, int] = (1, 1)
    dynamic: bool = False
    prompt_chunks: int = 1


@dataclass(frozen=True)
class Part:
    """One graph to build: its file, relative to the bundle, its inputs, what it computes in, the sizes it is run at."""

    model: Path
    spec: GraphSpec
    precision: str
    profiles: tuple[Profile, ...]


def parts_of(manifest: Manifest, family: Family, space: LatentSpace, wanted: Wanted) -> Iterator[Part]:
    """The graphs that drawing runs; with ControlNets, the UNet that listens to them.

    Raises:
        UsageError: a size that the model cannot draw.
    """
    step = space.pixels_per_latent
    for width, height in wanted.sizes:
        if width % step or height % step or not (width and height):
            raise UsageError(f"--shapes {width}x{height}: width and height must be multiples of {step}")
    controlled = any(name.startswith("controlnet") for name in manifest.graphs)
    for name, graph in manifest.graphs.items():
        if name == "image_encoder":  # for --best-of alone, which builds it then
            continue
        chosen = graph.variants["controlnet"] if name == "unet" and controlled else graph
        profiles = tuple(_profile(name, chosen.spec, at, manifest, family, wanted, step) for at in _groups(wanted))
        yield Part(Path(chosen.model), chosen.spec, graph.dtype, tuple(dict.fromkeys(profiles)))


def _groups(wanted: Wanted) -> Sequence[tuple[Range, Range]]:
    """Width and height for each profile."""
    if not wanted.dynamic:
        return [((w, w, w), (h, h, h)) for w, h in wanted.sizes]
    widths, heights = zip(*wanted.sizes, strict=True)
    return [((min(widths), widths[0], max(widths)), (min(heights), heights[0], max(heights)))]


def _profile(
    name: str, spec: GraphSpec, at: tuple[Range, Range], manifest: Manifest, family: Family, wanted: Wanted, step: int
) -> Profile:
    scale = 1 if name == "vae_encoder" else step
    sizes = {"batch": _batch(name, manifest, family, wanted)}
    sizes["sequence_length"] = (MAX_LENGTH, MAX_LENGTH, MAX_LENGTH * wanted.prompt_chunks)
    sizes |= {side: _scaled(pixels, scale) for side, pixels in zip(("width", "height"), at, strict=True)}
    free = {d for tensor in spec.inputs for d in tensor.shape if isinstance(d, str)}
    if unknown := sorted(d for d in free if not sizes.keys() & _names(d)):
        raise UsageError(f"{name}: free dimension {unknown[0]!r}, known: {', '.join(sorted(sizes))}; export it again")
    return Profile.of({side: size for side, size in sizes.items() if any(side in _names(d) for d in free)})


def _batch(name: str, manifest: Manifest, family: Family, wanted: Wanted) -> Range:
    """Of what one call of a component is given: both prompts, a picture at a time, or all branches of the guidance."""
    if name.startswith("text_encoder"):
        return 2, 2, 2
    if name.startswith("vae") or name == "safety_checker":
        return 1, 1, 1
    branches = 1 if manifest.takes_guidance_scale else family.branches
    least, most = (branches * pictures for pictures in wanted.batch)
    return least, least, most


def _scaled(pixels: Range, step: int) -> Range:
    least, best, most = pixels
    return least // step, best // step, most // step


def _names(dimension: str) -> set[str]:
    """What an expression such as "8*height" is made of."""
    return set(dimension.replace("*", "/").split("/"))
