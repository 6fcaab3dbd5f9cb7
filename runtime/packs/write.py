"""A bundle to a pack: a zip file, stored, whose members begin at multiples of 64 bytes, so that weights are mapped."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgediffusion import __version__
from edgediffusion.engines.errors import BundleError, UsageError
from edgediffusion.engines.files import PARTIAL, alone, read_pieces, replacing
from edgediffusion.engines.packed import File
from edgediffusion.engines.recipe import STRIPPED
from edgediffusion.engines.store import Entry, Store
from edgediffusion.engines.tensorrt_store import BUNDLE_STORE

from ..low_rank import FACTORS
from ..manifest import MANIFEST, FileRecord, Manifest, inside
from .patches import WORTH, Patch, make_patch, new_bytes
from .read import Pack
from .record import RECORD, SIGNATURE, PackRecord, check_names, new_name
from .signatures import sign

ALIGNMENT = 64  # a cache line, and the widest vector register
_HEADER, _ZIP64 = 30, 20  # bytes before a member's name, and of the extra field of a large one
_PADDING = struct.Struct("<HH")  # of an extra field: what kind, how long
_KIND = 0xD935  # as zipalign's
_LARGE = 1 << 30  # from here on a member has the longer header, which zip wants from 2 GiB on


def pack_bundle(
    bundle: Path,
    path: Path,
    *,
    engines: bool = False,
    target: str | None = None,
    key: Path | None = None,
    since: Pack | None = None,
) -> PackRecord:
    """Write the folder `bundle` to the new file `path`; the same bundle gives the same bytes.

    With `engines` those built for it, in the bundle or the user's cache, go too: all, or those for GPUs of the
    architecture `target`, such as "sm_87". `key` is the file of a private key to sign with. Of what `since` has,
    nothing is written: a delta. Of a file that has changed, neither are the weights that it has, or would have with
    the LoRAs added that are in the bundle.

    Raises:
        BundleError: there is no bundle, or a file of it is not that of its manifest; nothing is written.
        UsageError: `path` is there already or cannot be written, or there are no such engines.
    """
    manifest = Manifest.read(bundle)
    files: dict[str, tuple[File, FileRecord]] = {
        name: (inside(bundle, name), _known(inside(bundle, name), record)) for name, record in manifest.files.items()
    }
    files[MANIFEST] = (bundle / MANIFEST, FileRecord.of(bundle / MANIFEST))
    if engines:
        files |= _engine_files(bundle, manifest, target)
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}; make it first")
    record = PackRecord(
        version=__version__,
        files={name: record for name, (_, record) in sorted(files.items())},
        target=target,
        since=None if since is None else since.digest,
        patches={} if since is None else dict(_patches(files, since)),
    )
    check_names(record.members, bundle)
    content = record.to_json()
    signature = None if key is None else sign(content, key)
    there = {} if since is None else since.record.files
    changed = {name: files[name] for name in record.files if there.get(name) != record.files[name]}
    members = {
        **{name: _checked(*file) for name, file in changed.items() if name not in record.patches},
        **{new_name(name): new_bytes(patch, files[name][0]) for name, patch in record.patches.items()},
    }
    try:
        with alone(path.with_name(f".{path.name}.lock")):
            for left in path.parent.glob(f"{path.stem}.*{path.suffix}{PARTIAL}"):  # by one that was killed
                left.unlink()
            if path.exists():
                raise UsageError(f"{path}: is there already; choose another name, or take it away")
            with replacing(path) as partial:
                _write(partial, content, signature, {name: (record.members[name], members[name]) for name in members})
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from None
    return record


def _patches(files: Mapping[str, tuple[File, FileRecord]], since: Pack) -> Iterator[tuple[str, Patch]]:
    """Of the files that are other than in `since`, where they are not better held whole."""
    for name in sorted(files.keys() & since.root.members):
        (file, record), old = files[name], since.record.files[name]
        if min(record.bytes, old.bytes) >= WORTH and record != old:
            since.check_file(name)
            for _ in _checked(file, record):
                pass
            if patch := make_patch(file, since.root / name, old, file.parent / FACTORS):
                yield name, patch


def _known(file: File, record: FileRecord) -> FileRecord:
    return record if record.sha256 is not None else FileRecord.of(file)


def _engine_files(bundle: Path, manifest: Manifest, target: str | None) -> dict[str, tuple[File, FileRecord]]:
    """Plans and sidecars, as the bundle's own store will have them."""
    entries = {
        entry.recipe.name: entry
        for store in (Store.of_user(), Store(bundle / BUNDLE_STORE))
        for entry in store.entries()
    }
    chosen = [entry for entry in entries.values() if _fits(entry, manifest, target)]
    if not chosen:
        wanted = "" if target is None else f" for {target}"
        raise UsageError(f"{bundle}: no engines of this bundle{wanted}; make some with: edgediffusion build {bundle}")
    return {
        f"{BUNDLE_STORE}/{file.name}": (file, record)
        for entry in chosen
        for file, record in (
            (entry.plan, FileRecord(bytes=entry.built.bytes, sha256=entry.built.sha256)),
            (entry.sidecar, FileRecord.of(entry.sidecar)),
        )
    }


def _fits(entry: Entry, manifest: Manifest, target: str | None) -> bool:
    graphs = {
        manifest.files[model].sha256
        for graph in manifest.all_graphs.values()
        for model in (graph.model, *(dialect.model for dialect in graph.dialects.values()))
    }
    weights = {manifest.files[graph.weights].sha256 for graph in manifest.graphs.values()}
    source = entry.recipe.source
    if source.graph not in graphs or source.weights not in weights | {STRIPPED}:
        return False
    return target is None or entry.recipe.target.takes(_compute_capability(target))


def _compute_capability(target: str) -> str:
    """ "sm_87" -> "8.7" """
    digits = target.removeprefix("sm_")
    if digits == target or not digits.isdecimal() or len(digits) < 2:
        raise UsageError(f"target {target!r}, wanted a GPU's architecture such as sm_87")
    return f"{digits[:-1]}.{digits[-1]}"


def _write(
    path: Path, content: bytes, signature: bytes | None, members: Mapping[str, tuple[FileRecord, Iterator[bytes]]]
) -> None:
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, file.tell(), RECORD, len(content), iter([content]))
        if signature is not None:
            _add(archive, file.tell(), SIGNATURE, len(signature), iter([signature]))
        for name, (record, pieces) in members.items():
            _add(archive, file.tell(), name, record.bytes, pieces)
        archive.close()
        file.flush()
        os.fsync(file.fileno())


def _add(archive: zipfile.ZipFile, position: int, name: str, size: int, pieces: Iterator[bytes]) -> None:
    info = zipfile.ZipInfo(name)
    info.file_size, info.external_attr = size, 0o100644 << 16
    large = size > _LARGE
    header = _HEADER + len(name.encode()) + (_ZIP64 if large else 0) + _PADDING.size
    padding = -(position + header) % ALIGNMENT
    info.extra = _PADDING.pack(_KIND, padding) + bytes(padding)
    with archive.open(info, "w", force_zip64=large) as member:
        for piece in pieces:
            member.write(piece)


def _checked(source: File, record: FileRecord) -> Iterator[bytes]:
    """The content of a file, a piece at a time; BundleError at the end where it is not that of `record`."""
    found, size = hashlib.sha256(), 0
    try:
        for piece in read_pieces(source):
            found.update(piece)
            size += len(piece)
            yield piece
    except FileNotFoundError:
        raise BundleError(f"{source}: missing; copy or export the bundle again") from None
    if (size, found.hexdigest()) != (record.bytes, record.sha256):
        raise BundleError(
            f"{source}: altered, {size} bytes of SHA-256 {found.hexdigest()}, expected {record.bytes} "
            f"of {record.sha256}; copy or export the bundle again"
        )
