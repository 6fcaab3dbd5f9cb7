"""`edgediffusion.json`: what a bundle holds, where it came from, and how well each graph agrees with torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.spec import GraphSpec, TensorSpec

MANIFEST = "edgediffusion.json"
SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and SHA-256 of one file; the key in the manifest is its path inside the bundle, with `/`."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Distance of a graph from torch: max |graph - torch| / max |torch|, worst sample and output, in float64."""

    error: float
    tolerance: float
    worst: str


@dataclass(frozen=True, kw_only=True)
class GraphRecord:
    """One component's graph: files relative to the bundle, inputs and outputs, parity."""

    model: str
    weights: str
    spec: GraphSpec
    parity: Parity


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole of `edgediffusion.json`.

    `source` names the checkpoint, `source_sha256` its weight files; `dtype` is what the graphs compute in and
    `weights_dtype` what the weights are stored in; `versions` are the tools that wrote the bundle.
    """

    family: str
    source: str
    source_sha256: dict[str, str]
    dtype: str
    weights_dtype: str
    opset: int
    license: str
    versions: dict[str, str]
    graphs: dict[str, GraphRecord]
    files: dict[str, FileRecord]

    def to_json(self) -> str:
        """The text of the file."""
        return json.dumps({"schema": SCHEMA} | dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def read(cls, bundle: Path) -> Manifest:
        """Read the manifest of the folder `bundle`.

        Raises:
            BundleError: there is none, it is not valid, or its schema is newer than this version reads.
        """
        path = bundle / MANIFEST
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(
                f"{bundle}: no bundle here, {MANIFEST} is missing; write one with: edgediffusion export SOURCE {bundle}"
            ) from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: cannot be read ({error}); export the bundle again") from None
        try:
            schema = record.pop("schema")
            if schema > SCHEMA:
                raise BundleError(
                    f"{path}: schema {schema}, this version reads up to {SCHEMA}; pip install --upgrade edgediffusion"
                )
            return cls(
                **record
                | {
                    "graphs": {name: _graph(graph) for name, graph in record["graphs"].items()},
                    "files": {name: FileRecord(**file) for name, file in record["files"].items()},
                }
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise BundleError(f"{path}: not a valid manifest ({error!r}); export the bundle again") from None


def _graph(record: dict[str, Any]) -> GraphRecord:
    spec = record["spec"]
    return GraphRecord(
        model=record["model"],
        weights=record["weights"],
        spec=GraphSpec(spec["name"], _tensors(spec["inputs"]), _tensors(spec["outputs"])),
        parity=Parity(**record["parity"]),
    )


def _tensors(records: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(r["name"], r["dtype"], tuple(r["shape"])) for r in records)
