"""A checkpoint becomes a bundle: every component, one at a time, then the manifest; all of it or nothing."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edgediffusion.engines.errors import ExportError, UsageError
from edgediffusion.runtime.families import FAMILIES as RUNTIME_FAMILIES
from edgediffusion.runtime.manifest import MANIFEST, FileRecord, Manifest

from .component import Exported, export_component
from .families import FAMILIES
from .options import Options
from .sources import MODEL_INDEX, Source, gather
from .tokenizer import write_tokenizer

COPIED = ("scheduler/scheduler_config.json", "feature_extractor/preprocessor_config.json", "README.md", "LICENSE")
TOOLS = ("edgediffusion", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # components that diffusers can do without


def export_bundle(
    source: str | Path,
    out: Path,
    options: Options = Options(),  # noqa: B008  frozen
    report: Callable[[str], None] = lambda line: None,
) -> Manifest:
    """Write the bundle of the checkpoint `source` to the new folder `out`; `report` gets a line per stage.

    `out` appears when everything is in it.

    Raises:
        UsageError: `out` is taken, or cannot be made.
        ExportError, UnknownName: `source` is not a whole checkpoint of a known family, or a graph disagrees with torch.
    """
    checkpoint = gather(source, options)
    family = checkpoint.family
    with _new_folder(out.resolve()) as bundle:
        exported, digests = _export_components(checkpoint, options, bundle, report)
        report("tokenizer, scheduler and manifest")
        _copy_settings(checkpoint, bundle)
        manifest = Manifest(
            family=family,
            source=checkpoint.name,
            source_sha256=digests,
            opset=options.opset,
            license=checkpoint.license() if options.license is None else options.license,
            versions={tool: importlib.metadata.version(tool) for tool in TOOLS},
            graphs={name: part.record for name, part in exported.items()},
            files={path.relative_to(bundle).as_posix(): _file_record(path) for path in _files(bundle)},
        )
        (bundle / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder whose content is moved to `out` at the end, and is gone when anything goes wrong before.

    An empty `out` is filled, with the manifest last, since it may be a mount point that nothing can take the place of.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UsageError(f"{out}: already exists; name a new folder, or remove it first")
    place = out if out.exists() else out.parent
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=place) as temporary:
            folder = Path(temporary) / out.name
            folder.mkdir()
            yield folder
            if place == out:
                for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
                    path.rename(out / path.name)
            else:
                folder.rename(out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error})") from error


def _export_components(
    source: Source, options: Options, bundle: Path, report: Callable[[str], None]
) -> tuple[dict[str, Exported], dict[str, str]]:
    components = {component.folder: component for component in RUNTIME_FAMILIES[source.family].components}
    exported: dict[str, Exported] = {}
    digests: dict[str, str] = {}
    for name, network in FAMILIES[source.family].items():
        part = source.component(network.folders)
        if part is None and components[name].optional:
            continue
        if part is None:
            wanted = " or ".join(f"{name}/config.json" for name in network.folders)
            raise ExportError(f"{source.name}: {wanted} is missing")
        report(f"{name}: exporting")
        seen = {name: part.outputs for name, part in exported.items()}
        exported[name] = export_component(part, components[name], network, seen, bundle, options)
        for path in part.files:
            file = f"{path.parent.name}/{path.name}"
            digests[file] = digests.get(file) or _digest(path)  # components may share a file
        parity = exported[name].record.parity
        report(f"{name}: agrees with torch to {parity.error:.1e} (tolerance {parity.tolerance:.0e}; {parity.worst})")
        if remark := exported[name].remark:
            report(remark)
    return exported, digests


def _copy_settings(source: Source, bundle: Path) -> None:
    for name in COPIED:
        if name in source.settings:
            (bundle / name).parent.mkdir(exist_ok=True)
            (bundle / name).write_bytes(source.settings[name])
    for tokenizer in RUNTIME_FAMILIES[source.family].tokenizers:
        write_tokenizer(source.folder(tokenizer), bundle / tokenizer)
    left_out = (key for key in source.index if key in OPTIONAL and not (bundle / key).is_dir())
    index = source.index | {key: [None, None] for key in left_out}
    (bundle / MODEL_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _file_record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=_digest(path))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
