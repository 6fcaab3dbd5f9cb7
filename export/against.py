"""The parity check of an export once more, for a bundle that is there: on another machine, or with another backend."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from edgediffusion.engines.errors import BundleError, ExportError
from edgediffusion.engines.packed import Packed
from edgediffusion.engines.spec import Array, GraphSpec
from edgediffusion.runtime.bundle import Bundle
from edgediffusion.runtime.foreign import is_foreign
from edgediffusion.runtime.golden import Check, Golden, check, tiled

from .component import load_network
from .families import FAMILIES, Network, Sample, Seen, Variant
from .options import Options
from .sources import Config, gather
from .verify import references


def checks_against(bundle: Bundle, source: str, options: Options) -> Iterator[Check]:
    """Each graph of `bundle` as it runs here beside torch's network, in float32, of the checkpoint `source`.

    The inputs are those of an export, the tolerances the bundle's.

    Raises:
        ExportError: `source` is of another family or lacks a component, or see `sources.gather`.
        BundleError: another tool wrote the bundle: optimum's graphs do not take the odd sizes that are compared.
    """
    if not isinstance(bundle.path, Packed) and is_foreign(bundle.path):
        raise BundleError(
            f"{bundle.path}: written with another tool, whose graphs cannot be compared at every size; export {source} "
            "with edgediffusion, and verify that"
        )
    checkpoint, graphs = gather(source, options), bundle.manifest.all_graphs
    if checkpoint.family != bundle.manifest.family:
        raise ExportError(
            f"{checkpoint.name}: family {checkpoint.family}, that of {bundle.path} is {bundle.manifest.family}; "
            f"name the checkpoint that it was made from, {bundle.manifest.source}"
        )
    seen: dict[str, list[dict[str, Array]]] = {}
    for name, network in FAMILIES[checkpoint.family].items():
        if name not in bundle.manifest.graphs:
            continue
        part = checkpoint.component(network.folders)
        if part is None:
            raise ExportError(f"{checkpoint.name}: no {name} there, which {bundle.path} has; add what gives one")
        module, _ = load_network(part, network)
        samples = {
            variant: _run_torch(
                module, network if variant is None else network.variants[variant], part.config, seen, graph.spec
            )
            for (component, variant), graph in graphs.items()
            if component == name
        }
        del module  # the engines need the memory
        seen[name] = [sample.outputs for sample in samples[None]]
        for variant in samples:
            yield check(bundle, name, variant, samples[variant])


def _run_torch(
    module: nn.Module, graph: Network | Variant, config: Config, seen: Seen, spec: GraphSpec
) -> list[Golden]:
    """What torch makes of the samples of `graph`, at the sizes that `spec`, the bundle's, fixes."""
    samples = [Sample(sample.label, tiled(sample.feeds, spec)) for sample in graph.samples(config, seen)]
    wanted = references(module, graph.spec(config), samples)
    return [Golden(sample.label, sample.feeds, outputs) for sample, outputs in zip(samples, wanted, strict=True)]
