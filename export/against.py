"""The parity check of an export once more, for a bundle that is there: on another machine, or with another backend."""

from __future__ import annotations

from collections.abc import Iterator

from edgediffusion.engines.errors import ExportError
from edgediffusion.engines.spec import Array
from edgediffusion.runtime.bundle import Bundle
from edgediffusion.runtime.golden import Check, Golden, check, tiled

from .component import load_network
from .families import FAMILIES, Sample
from .options import Options
from .sources import gather
from .verify import references


def checks_against(bundle: Bundle, source: str, options: Options) -> Iterator[Check]:
    """Each graph of `bundle` as it runs here beside torch's network, in float32, of the checkpoint `source`.

    The inputs are those of an export, the tolerances the bundle's.

    Raises:
        ExportError: `source` is of another family or lacks a component, or see `sources.gather`.
    """
    checkpoint, graphs = gather(source, options), bundle.manifest.graphs
    if checkpoint.family != bundle.manifest.family:
        raise ExportError(
            f"{checkpoint.name}: family {checkpoint.family}, that of {bundle.path} is {bundle.manifest.family}; "
            f"name the checkpoint that it was made from, {bundle.manifest.source}"
        )
    seen: dict[str, list[dict[str, Array]]] = {}
    for name, network in FAMILIES[checkpoint.family].items():
        if name not in graphs:
            continue
        part = checkpoint.component(network.folders)
        if part is None:
            raise ExportError(f"{checkpoint.name}: no {name} there, which {bundle.path} has; add what gives one")
        module, _ = load_network(part, network)
        given = network.samples(part.config, seen)
        samples = [Sample(sample.label, tiled(sample.feeds, graphs[name].spec)) for sample in given]
        seen[name] = references(module, network.spec(part.config), samples)
        del module  # the engine needs the memory
        yield check(
            bundle, name, [Golden(s.label, s.feeds, wanted) for s, wanted in zip(samples, seen[name], strict=True)]
        )
