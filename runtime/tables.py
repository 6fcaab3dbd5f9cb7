"""What `inspect` and `doctor` show to people."""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from edgediffusion.engines.probe import Probe
    from edgediffusion.engines.spec import TensorSpec
    from edgediffusion.engines.store import Entry

    from .doctor import Machine
    from .findings import Finding
    from .golden import Check
    from .manifest import Manifest, Parity, Static
    from .metadata import Parameters
    from .schedulers import Sampler

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """`text` without what would steer a terminal; lines stay lines."""
    return _CONTROL.sub("?", text)


def show_parameters(parameters: Parameters) -> None:
    """What is known of how a picture was made, a line each."""
    known = dataclasses.asdict(parameters)
    other = known.pop("other")
    _facts(make_console(), {name: value for name, value in (known | other).items() if value is not None})


def show_manifest(manifest: Manifest) -> None:
    """Where a model came from, and its graphs."""
    console = make_console()
    facts = {
        "family": manifest.family,
        "source": manifest.source,
        "licence": manifest.license,
        "opset": manifest.opset,
        "sizes": "any" if manifest.static is None else f"static, {_static(manifest.static)}",
        "written with": _versions(manifest.versions) or "another tool, such as optimum: no manifest and no digests",
        "files": f"{len(manifest.files)}, {_size(sum(record.bytes for record in manifest.files.values()))}",
    }
    _facts(console, facts)
    console.print()
    header = ("graph", "dtype", "inputs", "outputs", "weights", "error against torch")
    rows = [
        (
            name,
            graph.dtype,
            _signature(graph.spec.inputs),
            _signature(graph.spec.outputs),
            f"{_size(manifest.files[graph.weights].bytes)} {graph.weights_dtype}",
            _parity(graph.parity),
        )
        for name, graph in manifest.graphs.items()
    ]
    _table(console, header, rows)
    for name, graph in manifest.graphs.items():
        for device, dialect in graph.dialects.items():
            changed = ", ".join(f"{count} {kind}" for kind, count in dialect.changed.items() if count)
            said = f"{changed or 'nothing changed'}; error {_parity(dialect.parity)}"
            console.print(printable(f"\n{name} for {device}: {said}"))


def show_checks(checks: Iterable[Check], tested_on: Mapping[str, str]) -> None:
    """What they were run on, and a line for each graph."""
    _facts(make_console(), tested_on)
    header = ("graph", "", "error against torch", "worst output", "sample")
    states = {True: "agrees", False: "DISAGREES"}
    rows = [
        (c.component, states[c.passed], f"{c.error:.1e}, allowed {c.tolerance:.0e}", c.output, c.sample) for c in checks
    ]
    _table(make_console(), header, rows)


def show_machine(machine: Machine, findings: Sequence[Finding], probes: Sequence[Probe]) -> None:
    """A machine, what works on it, and what mends the rest."""
    console = make_console()
    facts = {
        "versions": _versions(machine.versions),
        "system": machine.system,
        "cpu": machine.cpu,
        "features": " ".join(machine.features),
        "threads": machine.threads,
        "memory": machine.memory and _size(machine.memory),
    }
    facts |= {finding.name: finding.found for finding in findings}
    _facts(console, {name: value for name, value in facts.items() if value})
    console.print()
    header = ("backend", "device", "", "installed")
    states = {True: "works", False: "does not work"}
    _table(console, header, [(p.backend, p.device, states[p.works], _versions(p.versions)) for p in probes])
    for probe in probes:
        if probe.reason:
            console.print(f"\n{probe.backend} on {probe.device}: {printable(probe.reason)}\n    {probe.remedy}")
    for finding in findings:
        if not finding.passed:
            console.print(f"\n{finding.name}: {printable(finding.found)}\n    {finding.remedy}")


def show_engines(engines: Sequence[tuple[Entry, str]]) -> None:
    """A line for each engine, with what is said of it here."""
    header = ("graph", "precision", "sizes", "backend", "for", "size", "built in", "here")
    rows = []
    for entry, remark in engines:
        source, target = entry.recipe.source, entry.recipe.target
        rows.append(
            (
                f"{source.component} {source.variant}".rstrip(),
                entry.recipe.precision,
                "\n".join(map(str, entry.recipe.profiles)),
                f"{target.backend} {target.version}",
                f"{target.gpu or 'any GPU'}, {target.compute_capability}",
                _size(entry.built.bytes),
                f"{entry.built.seconds:.0f} s",
                remark,
            )
        )
    _table(make_console(), header, rows)


def show_samplers(samplers: Iterable[Sampler]) -> None:
    """A line for each sampler."""
    header = ("name", "diffusers", "UNet calls a step", "draws noise", "sigmas", "paper")
    yes_no = {True: "yes", False: "no"}
    rows = [
        (
            sampler.name,
            sampler.diffusers or "",
            str(sampler.calls_per_step),
            yes_no[sampler.draws_noise],
            " ".join(sampler.sigmas),
            sampler.paper,
        )
        for sampler in samplers
    ]
    _table(make_console(), header, rows)


def make_console() -> Console:
    """Of stdout, for tables: nothing is coloured, marked up, or folded where there is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else 240  # a pipe has no width to fold to
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True, width=width)


def _facts(console: Console, facts: Mapping[str, object]) -> None:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    for name, value in facts.items():
        grid.add_row(printable(name), printable(str(value)))
    console.print(grid)


def _table(console: Console, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(*header, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*map(printable, row))
    console.print(table)


def _signature(tensors: Iterable[TensorSpec]) -> str:
    return "\n".join(f"{t.name} {t.dtype} ({', '.join(map(str, t.shape))})" for t in tensors)


def _parity(parity: Parity) -> str:
    return parity.worst if math.isnan(parity.error) else f"{parity.error:.1e}, allowed {parity.tolerance:.0e}"


def _static(static: Static) -> str:
    return f"{static.batch} of {static.width}x{static.height} pixels"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
