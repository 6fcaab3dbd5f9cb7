"""One component of an export whose outcome is files: another process can write them, a later export go on from them."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgediffusion.engines.spec import Array
from edgediffusion.runtime.families import FAMILIES as RUNTIME_FAMILIES
from edgediffusion.runtime.golden import GOLDEN
from edgediffusion.runtime.manifest import FileRecord, GraphRecord, parse_graph

from .component import export_component
from .families import FAMILIES
from .options import Options
from .sources import Part
from .staging import BUNDLE, NOTES

TOOLS = ("edgediffusion", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Note:
    """What a finished stage leaves for the manifest. `key` is what it was made from, see `Stage.key`."""

    key: str
    record: GraphRecord
    remark: str | None
    files: dict[str, FileRecord]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The export of the component `name` to `folder / BUNDLE`; its note and torch's outputs go to `NOTES`.

    `source_sha256` are the digests of the files that the weights come from. `sizes` are what the free dimensions of its
    graphs are fixed to, None where they stay free.
    """

    family: str
    name: str
    part: Part
    options: Options
    source_sha256: dict[str, str]
    sizes: dict[str, int] | None
    folder: Path

    @property
    def bundle(self) -> Path:
        """Where the files of all components come together."""
        return self.folder / BUNDLE

    @property
    def notes(self) -> Path:
        """Where what later stages need is kept."""
        return self.folder / NOTES

    @property
    def key(self) -> str:
        """Weights, config, options and tools: two stages of one key write the same files."""
        options = dataclasses.replace(self.options, resume=False, license=None)
        tools = {tool: importlib.metadata.version(tool) for tool in TOOLS}
        parts = (self.family, self.source_sha256, self.part.config, repr(options), self.sizes, tools)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def run(self) -> None:
        """Export the component; its note comes last.

        Raises:
            ExportError: see `component.export_component`.
        """
        shutil.rmtree(self.bundle / self.name, ignore_errors=True)
        (component,) = (c for c in RUNTIME_FAMILIES[self.family].components if c.folder == self.name)
        seen = {path.stem: _read_outputs(path) for path in self.notes.glob("*.npz")}
        network = FAMILIES[self.family][self.name]
        network = network if self.sizes is None else network.fixed(self.sizes)
        exported = export_component(self.part, component, network, seen, self.bundle, self.options)
        _write_outputs(self.notes / f"{self.name}.npz", exported.outputs)
        paths = [*(self.bundle / self.name).iterdir(), *(self.bundle / GOLDEN).glob(f"{self.name}.*")]
        files = {path.relative_to(self.bundle).as_posix(): FileRecord.of(path) for path in paths}
        note = Note(self.key, exported.record, exported.remark, files)
        (self.notes / f"{self.name}.json").write_text(json.dumps(dataclasses.asdict(note)), encoding="utf-8")

    def note(self) -> Note | None:
        """What `run` left, if it came to its end."""
        try:
            record = json.loads((self.notes / f"{self.name}.json").read_text(encoding="utf-8"))
            files = {name: FileRecord(**file) for name, file in record["files"].items()}
            return Note(record["key"], parse_graph(record["record"]), record["remark"], files)
        except (OSError, ValueError, KeyError, TypeError):  # none, or cut short
            return None

    def finished(self) -> Note | None:
        """The note of an earlier `run` with the same `key`, if its files are as it left them."""
        note = self.note()
        return note if note is not None and note.key == self.key and self._whole(note) else None

    def _whole(self, note: Note) -> bool:
        return all(file.fits(self.bundle / name) for name, file in note.files.items())


def _write_outputs(path: Path, outputs: list[dict[str, Array]]) -> None:
    arrays: dict[str, Any] = {
        f"{i} {name}": array for i, output in enumerate(outputs) for name, array in output.items()
    }
    np.savez(path, **arrays)


def _read_outputs(path: Path) -> list[dict[str, Array]]:
    outputs: list[dict[str, Array]] = []
    with np.load(path, allow_pickle=False) as arrays:
        for key in arrays.files:
            i, name = key.split(" ", 1)
            outputs += [{} for _ in range(int(i) + 1 - len(outputs))]
            outputs[int(i)][name] = arrays[key]
    return outputs
