"""What exporting a component needs to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from torch import nn

from edgediffusion.engines.spec import Array, GraphSpec
from edgediffusion.runtime.golden import tiled

from ..sources import Config


@dataclass(frozen=True)
class Sample:
    """One set of inputs for the parity check; `label` says what is special about it."""

    label: str
    feeds: dict[str, Array]


Seen = Mapping[str, list[dict[str, Array]]]
"""Component -> the outputs of torch for each of its samples. Components are exported in the family's order."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A further graph of a component, with other inputs, for bundles that have the component `needs`."""

    needs: str
    spec: Callable[[Config], GraphSpec]
    samples: Callable[[Config, Seen], list[Sample]]


@dataclass(frozen=True, kw_only=True)
class Network:
    """One component. `folders` are where a checkpoint may keep it, `renames` and `skip` those of `sources.select`.

    `module` takes the inputs of `spec` by name and returns its outputs in order. `samples` are realistic inputs, made
    from what earlier components gave; the first one is the example that is traced, so its batch is 2 and its sizes are
    odd, and nothing about them becomes a constant of the graph.
    `batch` is how many the runtime asks of it at once; None: what the UNet is asked. `pixels` says that height and
    width of `spec` are those of pictures, not of latents.
    """

    module: Callable[[Config], nn.Module]
    spec: Callable[[Config], GraphSpec]
    samples: Callable[[Config, Seen], list[Sample]]
    folders: tuple[str, ...]
    renames: tuple[tuple[str, str], ...] = ()
    skip: tuple[str, ...] = ()
    variants: Mapping[str, Variant] = field(default_factory=dict)
    batch: int | None = None
    pixels: bool = False

    def fixed(self, sizes: Mapping[str, int]) -> Network:
        """The network at one size: `sizes` are those of the free dimensions of its specs."""
        variants = {name: _fixed(variant, sizes) for name, variant in self.variants.items()}
        return replace(_fixed(self, sizes), variants=variants)


_Graph = TypeVar("_Graph", Network, Variant)


def _fixed(graph: _Graph, sizes: Mapping[str, int]) -> _Graph:
    def samples(config: Config, seen: Seen) -> list[Sample]:
        spec = graph.spec(config).fixed(sizes)
        given = graph.samples(config, seen)
        return [Sample(f"{sample.label}, tiled", tiled(sample.feeds, spec)) for sample in given]

    return replace(graph, spec=lambda config: graph.spec(config).fixed(sizes), samples=samples)


POSITION_IDS = r".*\.position_ids$"  # a buffer that transformers before 4.31 saved
