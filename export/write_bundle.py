"""A checkpoint becomes a bundle: every component, one at a time, then the manifest; all of it or nothing."""

from __future__ import annotations

import importlib.metadata
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from edgediffusion.engines.errors import BundleError, ExportError, UsageError
from edgediffusion.engines.files import sha256_of
from edgediffusion.runtime.families import FAMILIES as RUNTIME_FAMILIES
from edgediffusion.runtime.manifest import MANIFEST, FileRecord, Manifest

from .component import match_network
from .families import FAMILIES
from .latent_rgb import add_latent_rgb, said
from .options import Options
from .process import in_child
from .sizes import static_sizes
from .sources import MODEL_INDEX, Part, Source, gather
from .stage import TOOLS, Note, Stage
from .staging import BUNDLE, staging
from .tokenizer import write_tokenizer
from .weights import Weight

COPIED = ("scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json", "README.md", "LICENSE")
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # components that diffusers can do without
GRAPHS = 32 << 20  # bytes; the graphs of a whole SDXL, tokenizers and golden outputs take less


def export_bundle(
    source: str | Path,
    out: Path,
    options: Options = Options(),  # noqa: B008  frozen
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Write the bundle of the checkpoint `source` to the new folder `out`; `report` gets a line per stage.

    `out` appears when everything is in it.

    Raises:
        UsageError: `out` is taken, or cannot be made; or no graph can have the size of `options.static`.
        ExportError, UnknownName: `source` is not a whole checkpoint of a known family, or a graph disagrees with torch.
    """
    checkpoint = gather(source, options)
    family = checkpoint.family
    parts = _parts(checkpoint)
    sizes = {} if options.static is None else static_sizes(family, parts, options.static)
    for name, part in parts.items():  # before the first of them has taken minutes
        match_network(part, FAMILIES[family][name])
    with staging(out.resolve(), keep=options.resume) as folder:
        _check_disk(out, folder, parts, options)
        notes, digests = _export_components(family, parts, sizes, options, folder, report)
        report("tokenizer, scheduler and manifest")
        bundle = folder / BUNDLE
        _copy_settings(checkpoint, bundle)
        manifest = Manifest(
            family=checkpoint.family,
            source=checkpoint.name,
            source_sha256=digests,
            opset=options.opset,
            license=checkpoint.license() if options.license is None else options.license,
            versions={tool: importlib.metadata.version(tool) for tool in TOOLS},
            graphs={name: note.record for name, note in notes.items()},
            files=_records(bundle, notes),
            static=options.static,
        )
        (bundle / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        _add_latent_rgb(bundle, report)
        manifest = Manifest.read(bundle)
    return manifest


def _add_latent_rgb(bundle: Path, report: Callable[[str], None]) -> None:
    try:
        report(said(add_latent_rgb(bundle)))
    except BundleError as error:
        report(f"previews: none, since the VAE does not run on the CPU here ({error})")


def _parts(source: Source) -> dict[str, Part]:
    """The components to export, in the family's order."""
    components = {component.folder: component for component in RUNTIME_FAMILIES[source.family].components}
    parts = {}
    for name, network in FAMILIES[source.family].items():
        part = source.component(network.folders)
        if part is not None:
            parts[name] = part
        elif not components[name].optional:
            wanted = " or ".join(f"{name}/config.json" for name in network.folders)
            raise ExportError(f"{source.name}: {wanted} is missing")
    return parts


def _check_disk(out: Path, folder: Path, parts: Mapping[str, Part], options: Options) -> None:
    need = weights_bytes(parts, options) + GRAPHS
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in _files(folder))
    if need > free:
        raise UsageError(
            f"{out}: the bundle takes about {need >> 20} MiB, {free >> 20} MiB are free there; "
            "free some, or name a folder on another disk"
        )


def weights_bytes(parts: Mapping[str, Part], options: Options) -> int:
    """What the weights of a bundle will take, before any of them is read: at most a few in a hundred too much."""
    once = {id(part): name for name, part in parts.items()}  # both halves of the VAE are one part
    return sum(
        _bytes(key, weight, options.dtype_of(name), options.weights)
        for name in once.values()
        for key, weight in parts[name].weights.items()
    )


def _bytes(key: str, weight: Weight, dtype: str, form: str | None) -> int:
    """What a weight will take. What is multiplied with, and so in 8 bits, are matrices other than look-up tables."""
    size = math.prod(weight.shape)
    if form == "int8" and len(weight.shape) > 1 and "embedding" not in key:
        return size + 4 * weight.shape[0]  # the scales
    return size * (4 if dtype == "float32" and weight.dtype == "F32" else 2)


def _export_components(
    family: str,
    parts: Mapping[str, Part],
    sizes: Mapping[str, dict[str, int]],
    options: Options,
    folder: Path,
    report: Callable[[str], None],
) -> tuple[dict[str, Note], dict[str, str]]:
    notes: dict[str, Note] = {}
    digests: dict[str, str] = {}
    for name, part in parts.items():
        sources = {f"{path.parent.name}/{path.name}": path for path in part.files}
        digests |= {key: sha256_of(path) for key, path in sources.items() if key not in digests}
        stage = Stage(
            family=family,
            name=name,
            part=part,
            options=options,
            source_sha256={key: digests[key] for key in sources},
            sizes=sizes.get(name),
            folder=folder,
        )
        notes[name] = stage.finished() or _run(stage, report)
        parity = notes[name].record.parity
        report(f"{name}: agrees with torch to {parity.error:.1e} (tolerance {parity.tolerance:g}; {parity.worst})")
        if remark := notes[name].remark:
            report(remark)
    return notes, digests


def _run(stage: Stage, report: Callable[[str], None]) -> Note:
    report(f"{stage.name}: exporting")
    peak = in_child(stage.name, stage.run)
    if peak is not None:
        report(f"{stage.name}: took at most {peak / 2**20:.0f} MiB of memory")
    note = stage.note()
    assert note is not None
    return note


def _records(bundle: Path, notes: Mapping[str, Note]) -> dict[str, FileRecord]:
    """Of every file: what a component's note says, which has digested the large ones, else what is there."""
    noted = {name: record for note in notes.values() for name, record in note.files.items()}
    names = {path.relative_to(bundle).as_posix(): path for path in _files(bundle)}
    return {name: noted[name] if name in noted else FileRecord.of(path) for name, path in names.items()}


def _copy_settings(source: Source, bundle: Path) -> None:
    for name in COPIED:
        if name in source.settings:
            (bundle / name).parent.mkdir(exist_ok=True)
            (bundle / name).write_bytes(source.settings[name])
    for tokenizer in RUNTIME_FAMILIES[source.family].tokenizers:
        shutil.rmtree(bundle / tokenizer, ignore_errors=True)  # of an export that is resumed
        write_tokenizer(source.folder(tokenizer), bundle / tokenizer)
    left_out = (key for key in source.index if key in OPTIONAL and not (bundle / key).is_dir())
    index = source.index | {key: [None, None] for key in left_out}
    (bundle / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
