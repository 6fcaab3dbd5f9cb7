"""A bundle: a folder, or a pack, with the graphs, weights and settings of one model, as the export writes it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from edgediffusion.engines.base import Building, Engine, Reports, Says, silent, unsaid
from edgediffusion.engines.errors import BundleError, UnknownName, UsageError
from edgediffusion.engines.files import sha256_of
from edgediffusion.engines.json_object import parse_object
from edgediffusion.engines.packed import File, Packed, size_of
from edgediffusion.engines.registry import BACKENDS, open_engine

from .families import FAMILIES, Family
from .foreign import adapt, read_manifest
from .manifest import FileRecord, GraphRecord, Manifest, Variant, graph_name, inside
from .memory import free_memory
from .packs.read import is_pack, open_pack
from .packs.unpack import unpacked
from .timings import Timings

_REMEDY = "copy or export the bundle again"
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Opening:
    """An engine under way: `verified` is done when its weights are known to be those of the manifest."""

    engine: Future[Engine]
    verified: Future[None]


class Bundle:
    """Opens engines on demand and frees them. A context manager: leaving it frees all."""

    def __init__(
        self,
        path: File,
        manifest: Manifest,
        family: Family,
        backend: str,
        device: str,
        building: Building,
        *,
        low_memory: bool,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.family = family
        self.low_memory = low_memory
        self._backend = backend
        self._device = device
        self._building = building
        self._pool = ThreadPoolExecutor(2 * len(manifest.graphs), "edgediffusion")
        self._openings: dict[tuple[str, str | None], _Opening] = {}  # by component and variant
        self._users: Counter[str] = Counter()  # blocks that need a component, see `using`
        self._used: dict[tuple[str, str | None], Future[None]] = {}  # in blocks: digests not known to be right yet
        self._closed = False
        self._lock = threading.RLock()
        self.timings = Timings()
        self.engines: dict[str, Engine] = {}  # see `use`

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        backend: str = "ort",
        device: str = "auto",
        build: bool = True,
        reports: Reports = silent,
        says: Says = unsaid,
        low_memory: bool = False,
    ) -> Bundle:
        """Check the folder or pack `path`: its manifest, that every file is there in full, digests of the small ones.

        Graphs and weights are digested when they are opened.
        A folder without a manifest that optimum exported is described from its graphs.
        `build` says whether a backend that needs engines of its own may build those that are lacking; of each that is
        built, what `reports` makes for its name is told the fraction that is done.
        `says` is told, for each engine, which device "auto" took and why.
        With `low_memory` no engine is opened before it is needed, and none is kept, see `using`.

        Raises:
            BundleError: there is no bundle, a file is missing, truncated or altered, or it is of a newer version.
        """
        root = _root(Path(path), backend, device)
        manifest = read_manifest(root)
        if manifest.family not in FAMILIES:
            raise BundleError(
                f"{root}: family {manifest.family!r}, known: {', '.join(sorted(FAMILIES))}; "
                "pip install --upgrade edgediffusion"
            )
        family = FAMILIES[manifest.family]
        for name, record in manifest.files.items():
            _check_size(inside(root, name), record)
        _check_graphs(root, manifest, family)
        heavy = {file for graph in manifest.graphs.values() for file in graph.files}
        for name in manifest.files.keys() - heavy:
            _check_digest(root / name, manifest.files[name])
        building = Building(allowed=build, reports=reports, says=says)
        return cls(root, manifest, family, backend, device, building, low_memory=low_memory)

    @property
    def builds_engines(self) -> bool:
        """Whether an engine is built, which takes minutes, for each new size of its inputs."""
        return _builds_engines(self._backend, self._device)

    @property
    def folder(self) -> Path:
        """The folder that it is.

        Raises:
            UsageError: it is a pack.
        """
        if isinstance(self.path, Packed):
            raise UsageError(f"{self.path}: a pack; wanted a folder: edgediffusion unpack {self.path} -o DIR")
        return self.path

    def config(self, name: str) -> dict[str, Any]:
        """The JSON file `name` of the bundle, such as "unet/config.json".

        Raises:
            BundleError: it is not in the manifest, or is not a JSON object.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: {name} is not in the manifest; {_REMEDY}")
        try:
            return parse_object((self.path / name).read_bytes())
        except ValueError as error:
            raise BundleError(f"{self.path / name}: not a JSON object ({error}); {_REMEDY}") from None

    def prefetch(self, *names: str) -> None:
        """Begin to open the engines of these components in threads, and to digest their files in others.

        Not with `low_memory`.

        Raises:
            UnknownName: the bundle has no such component.
            UsageError: the bundle is closed.
        """
        for name in names:
            if name not in self.engines and not self.low_memory:
                self._open(name, None)

    def wait(self, *names: str) -> None:
        """Until the engines of these components are open; their weights may still be digested.

        Raises: see `engine`.
        """
        for name in names:
            if name not in self.engines:
                self._opened(name, None)

    def engine(self, name: str, variant: str | None = None) -> Engine:
        """The engine of a component, opened now unless it is open; of a variant of its graph, where that is named.

        Its weights have the digest of the manifest, or in a block `using` it will have been looked at before that ends.

        Raises:
            BundleError: its files are not those of the manifest.
            UnknownName, BackendUnavailable, UsageError: see `prefetch` and `engines.registry.open_engine`.
        """
        if (given := self.engines.get(graph_name(name, variant))) is not None:
            return given
        in_block = self._users[name] > 0
        opening = self._opened(name, variant, verified=not in_block)
        if in_block:
            self._used[name, variant] = opening.verified
        return opening.engine.result()

    def _opened(self, name: str, variant: str | None, *, verified: bool = False) -> _Opening:
        opening = self._open(name, variant)
        try:
            if verified:
                opening.verified.result()
            opening.engine.result()
        except BaseException as error:
            self.release(name)
            if isinstance(error, BundleError):  # altered weights are the better reason
                opening.verified.result()
            raise
        return opening

    def use(self, engines: Mapping[str, Engine]) -> None:
        """Take these in place of its own, by component, or component.variant; whoever opened them closes them.

        Raises:
            UnknownName: the bundle has no such graph.
        """
        known = [graph_name(name, variant) for name, variant in self.manifest.all_graphs]
        if unknown := sorted(engines.keys() - set(known)):
            raise UnknownName("graph", unknown[0], known)
        self.engines = dict(engines)

    def release(self, *names: str) -> None:
        """Free the engines of these components; `engine` opens them again."""
        with self._lock:
            openings = [self._openings.pop(key) for key in list(self._openings) if key[0] in names]
        for opening in openings:
            if opening.engine.exception() is None:
                opening.engine.result().close()

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """A block that needs these components. With `low_memory` they are freed after the last such block.

        So they are where memory runs out: an engine keeps what a picture that was too large made it take.

        Raises:
            BundleError: as the block ends: weights that were used so far are not those of the manifest.
        """
        with self._lock:
            self._users.update(names)
        exhausted = False
        try:
            yield
            self._verify(dict(self._used))
        except MemoryError:
            exhausted = True
            raise
        finally:
            with self._lock:
                self._users.subtract(names)
                if self.low_memory or exhausted:
                    self.release(*(name for name in names if not self._users[name]))

    def verify(self) -> None:
        """Until the weights of all that is open, or being opened, are known to be those of the manifest.

        Raises:
            BundleError: they are not.
        """
        with self._lock:
            digests = {key: opening.verified for key, opening in self._openings.items()}
        self._verify(digests)

    def _verify(self, digests: Mapping[tuple[str, str | None], Future[None]]) -> None:
        """What is not right stays among what was used until it is opened anew: blocks of other threads end with it."""
        for key, digest in digests.items():
            try:
                digest.result()
            except BundleError:
                self.release(key[0])
                raise
            if self._used.get(key) is digest:
                del self._used[key]

    def _open(self, name: str, variant: str | None) -> _Opening:
        with self._lock:
            if self._closed:
                raise UsageError(f"{self.path}: this bundle was closed; open it again")
            if (name, variant) in self._openings:
                return self._openings[name, variant]
            if name not in self.manifest.graphs:
                raise UnknownName("component", name, self.manifest.graphs)
            component = self.manifest.graphs[name]
            if variant is not None and variant not in component.variants:
                raise UnknownName(f"variant of {name}", variant, component.variants)
            graph = component if variant is None else component.variants[variant]
            weights = {self.path / component.weights: self.manifest.files[component.weights]}
            verified = self._pool.submit(self._measured, f"digest {name}", _check_digests, weights)
            built_of = verified if self.builds_engines else None
            engine = self._pool.submit(self._measured, f"open {name}", self._open_engine, graph, component, built_of)
            opening = _Opening(engine, verified)
            self._openings[name, variant] = opening
            return opening

    def _measured(self, part: str, function: Callable[..., Result], *arguments: Any) -> Result:
        with self.timings.part(part):
            return function(*arguments)

    def _open_engine(self, graph: Variant, component: GraphRecord, built_of: Future[None] | None) -> Engine:
        if built_of is not None:  # what is built of altered weights would be taken for that of the right ones
            built_of.result()
        dialects = {device: self.path / dialect.model for device, dialect in graph.dialects.items()}
        if "int8" in component.weights_dtype and not _fits_widened(self.manifest.files[component.weights].bytes):
            dialects.pop("cpu", None)
        records = self.manifest.files.items()
        graphs = (graph.model, *(dialect.model for dialect in graph.dialects.values()))
        _check_digests(
            {self.path / file: self.manifest.files[file] for file in graphs}
        )  # parsers are not for any bytes
        engine = open_engine(
            self.path / graph.model,
            graph.spec,
            backend=self._backend,
            device=self._device,
            dialects=dialects,
            building=replace(
                self._building,
                precision=component.dtype,
                sha256={self.path / file: record.sha256 for file, record in records if record.sha256}
                if isinstance(self.path, Path)
                else {},
            ),
        )
        return adapt(engine)

    def close(self) -> None:
        """Free everything. May be called twice."""
        self.release(*self.manifest.graphs)
        self._pool.shutdown()
        self._closed = True

    def __enter__(self) -> Bundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _builds_engines(backend: str, device: str) -> bool:
    return (backend in BACKENDS and BACKENDS[backend].builds) or device not in ("auto", "cpu", "cuda")


def _root(path: Path, backend: str, device: str) -> File:
    """A folder, or a pack; where engines are built, they want files, so it is unpacked, once."""
    if not is_pack(path):
        return path
    if _builds_engines(backend, device):
        return unpacked(path)
    pack = open_pack(path)
    if pack.missing:
        raise BundleError(f"{path}: a delta, without {len(pack.missing)} of its files; unpack it with --base PACK")
    return pack.root


def _check_graphs(bundle: File, manifest: Manifest, family: Family) -> None:
    if missing := family.required - manifest.graphs.keys():
        raise BundleError(f"{bundle}: no graph of {', '.join(sorted(missing))} in the manifest; {_REMEDY}")
    for graph in manifest.graphs.values():
        for name in graph.files:
            if name not in manifest.files:
                raise BundleError(f"{bundle}: {name} has no size and digest in the manifest; {_REMEDY}")


def _check_size(path: File, record: FileRecord) -> None:
    try:
        size = size_of(path)
    except (OSError, ValueError):
        raise BundleError(f"{path}: missing; {_REMEDY}") from None
    if size != record.bytes:
        kind = "truncated" if size < record.bytes else "altered"
        raise BundleError(f"{path}: {kind}, {size} bytes, expected {record.bytes}; {_REMEDY}")


def _check_digest(path: File, record: FileRecord) -> None:
    if record.sha256 is None:
        return
    if (found := sha256_of(path)) != record.sha256:
        raise BundleError(f"{path}: altered, SHA-256 {found}, expected {record.sha256}; {_REMEDY}")


def _fits_widened(weights: int) -> bool:
    """Whether weights in 8 bits, which take so many bytes, may be held in float32: in half of the free memory."""
    free = free_memory()
    return free is None or 4 * weights <= free // 2


def _check_digests(files: Mapping[File, FileRecord]) -> None:
    for path, record in files.items():
        _check_digest(path, record)
