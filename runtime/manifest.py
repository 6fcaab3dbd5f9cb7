"""`edgediffusion.json`: what a bundle holds, where it came from, and how well each graph agrees with torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.files import sha256_of
from edgediffusion.engines.json_object import parse_object
from edgediffusion.engines.packed import File, size_of
from edgediffusion.engines.spec import GraphSpec, TensorSpec
from edgediffusion.engines.typed import check_types

MANIFEST = "edgediffusion.json"
SCHEMA = 4
_DTYPES = {"float32", "float16", "float64", "int32", "int64", "bool"}


def graph_name(component: str, variant: str | None) -> str:
    """What a graph is called, such as `unet.controlnet`."""
    return component if variant is None else f"{component}.{variant}"


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and SHA-256 of one file; the key in the manifest is its path inside the bundle, with `/`.

    `sha256` is None where nobody digested it, see `foreign`.
    """

    bytes: int
    sha256: str | None

    @classmethod
    def of(cls, file: File) -> FileRecord:
        """That of a file as it is."""
        return cls(bytes=size_of(file), sha256=sha256_of(file))

    def fits(self, file: File) -> bool:
        """Whether `file` is there and is that."""
        try:
            return size_of(file) == self.bytes and sha256_of(file) == self.sha256
        except OSError:
            return False


@dataclass(frozen=True, kw_only=True)
class Static:
    """What the graphs of a static bundle are for, and nothing else: `batch` pictures of this size in pixels.

    The UNet's own batch is larger where there is guidance; the graphs' specs have the numbers.
    """

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.height}x{self.width}"


@dataclass(frozen=True, kw_only=True)
class LatentRGB:
    """A linear map of the UNet's latents to colours in [-1, 1], for previews: rgb = latents @ weights + bias.

    `weights` has a row of three for each channel of the latents, `bias` three numbers. `r2` is the part of the colours'
    variance that it explained of the decoded pictures that it was fitted to.
    """

    weights: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    r2: float


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Distance of a graph from torch: max |graph - torch| / max |torch|, worst sample and output, in float64."""

    error: float
    tolerance: float
    worst: str


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The same graph, over the same weights, as one device computes it fastest, in operators that only it may have.

    `changed` says how many of each such operator the passes made; `parity` is that of the operators' definitions.
    """

    model: str
    parity: Parity
    changed: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A further graph over the weights of a component, such as the UNet that takes a ControlNet's residuals.

    It computes in the component's dtype, but for the nodes named in `islands`, which compute in float32.
    `dialects` of the graph have the device's name.
    """

    model: str
    spec: GraphSpec
    parity: Parity
    islands: tuple[str, ...] = ()
    dialects: Mapping[str, Dialect] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GraphRecord(Variant):
    """One component's graph: files relative to the bundle, inputs and outputs, parity.

    `dtype` is what the graph computes in, but for its islands; `weights_dtype` is what its weights are stored in.
    Inputs and outputs are those of `spec` whatever the dtype.
    """

    weights: str
    dtype: str
    weights_dtype: str
    variants: Mapping[str, Variant] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        """The graphs and their weights."""
        graphs = (self, *self.variants.values())
        dialects = [dialect.model for graph in graphs for dialect in graph.dialects.values()]
        return (*(graph.model for graph in graphs), *dialects, self.weights)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The whole of `edgediffusion.json`.

    `source` names the checkpoint, `source_sha256` its weight files; `versions` are the tools that wrote the bundle.
    `static` is None where the graphs take any batch and size.
    """

    family: str
    source: str
    source_sha256: dict[str, str]
    opset: int
    license: str
    versions: dict[str, str]
    graphs: dict[str, GraphRecord]
    files: dict[str, FileRecord]
    static: Static | None = None
    latent_rgb: LatentRGB | None = None

    @property
    def all_graphs(self) -> dict[tuple[str, str | None], Variant]:
        """Every graph by component and variant; None is the component's own."""
        found: dict[tuple[str, str | None], Variant] = {}
        for name, record in self.graphs.items():
            found[name, None] = record
            found |= {(name, variant): graph for variant, graph in record.variants.items()}
        return found

    @property
    def model_hash(self) -> str | None:
        """Ten digits that tell these weights from others; None where nobody digested them."""
        digests = [self.files[graph.weights].sha256 for _, graph in sorted(self.graphs.items())]
        known = [digest for digest in digests if digest is not None]
        return hashlib.sha256("".join(known).encode()).hexdigest()[:10] if known else None

    @property
    def takes_guidance_scale(self) -> bool:
        """Whether the scale is an input of the UNet: then it was distilled with guidance, and has one branch."""
        return any(tensor.name == "timestep_cond" for tensor in self.graphs["unet"].spec.inputs)

    def to_json(self) -> str:
        """The text of the file. A number that is not known is null: JSON has no NaN."""
        record = dataclasses.asdict(self, dict_factory=lambda pairs: {k: None if v != v else v for k, v in pairs})
        return json.dumps({"schema": SCHEMA} | record, indent=2) + "\n"

    @classmethod
    def read(cls, bundle: File) -> Manifest:
        """Read the manifest of the folder `bundle`.

        Raises:
            BundleError: there is none, it is not valid, or its schema is newer than this version reads.
        """
        path = bundle / MANIFEST
        try:
            record = parse_object(path.read_bytes())
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
            if schema == 1:
                record = _from_schema_1(record)
            static, latent_rgb = record.get("static"), record.get("latent_rgb")
            manifest = cls(
                **record
                | {
                    "static": None if static is None else Static(**static),
                    "latent_rgb": None if latent_rgb is None else _parse_latent_rgb(latent_rgb),
                    "graphs": {name: parse_graph(graph) for name, graph in record["graphs"].items()},
                    "files": {name: FileRecord(**file) for name, file in record["files"].items()},
                }
            )
            check_types(manifest, "manifest")
            return manifest
        except BundleError:
            raise
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise BundleError(f"{path}: not a valid manifest ({error!r}); export the bundle again") from None


def inside(bundle: File, name: str) -> File:
    """`bundle / name`; BundleError where that could lead elsewhere on any system."""
    windows = PureWindowsPath(name)
    if windows.drive or windows.root or "\\" in name or ".." in PurePosixPath(name).parts:
        raise BundleError(f"{bundle}: the manifest names {name!r}, which is outside the bundle; do not use this bundle")
    return bundle / name


def _from_schema_1(record: dict[str, Any]) -> dict[str, Any]:
    """There the dtypes were the bundle's, and a graph had no variants."""
    dtypes = {name: record.pop(name) for name in ("dtype", "weights_dtype")}
    return record | {"graphs": {name: graph | dtypes for name, graph in record["graphs"].items()}}


def parse_graph(record: dict[str, Any]) -> GraphRecord:
    """What `dataclasses.asdict` and JSON made of a record; KeyError or TypeError where it is none."""
    variants = {name: Variant(**_parse(variant)) for name, variant in record.get("variants", {}).items()}
    return GraphRecord(**_parse(record) | {"variants": variants})


def _parse(record: dict[str, Any]) -> dict[str, Any]:
    spec = record["spec"]
    return record | {
        "spec": GraphSpec(spec["name"], _tensors(spec["inputs"]), _tensors(spec["outputs"])),
        "parity": Parity(**record["parity"]),
        "islands": tuple(record.get("islands", ())),
        "dialects": {name: _parse_dialect(dialect) for name, dialect in record.get("dialects", {}).items()},
    }


def _parse_latent_rgb(record: dict[str, Any]) -> LatentRGB:
    return LatentRGB(weights=tuple(map(tuple, record["weights"])), bias=tuple(record["bias"]), r2=record["r2"])


def _parse_dialect(record: dict[str, Any]) -> Dialect:
    return Dialect(**record | {"parity": Parity(**record["parity"])})


def _tensors(records: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    specs = tuple(TensorSpec(r["name"], r["dtype"], tuple(r["shape"])) for r in records)
    if bad := [spec for spec in specs if spec.dtype not in _DTYPES]:
        raise ValueError(f"{bad[0].name} has dtype {bad[0].dtype!r}")
    return specs
