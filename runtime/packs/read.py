"""A pack opened: its members mapped into memory, nothing believed that is not checked."""

from __future__ import annotations

import mmap
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.files import sha256_of
from edgediffusion.engines.packed import Packed

from ..manifest import MANIFEST
from .record import MAX_BYTES, RECORD, SIGNATURE, PackRecord, digest, parse_record

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of the extra field
_MAGIC = b"PK\x03\x04"
_AGAIN = "copy it again, or go on with the copy: rsync --append-verify, curl -C -"


@dataclass(frozen=True)
class Pack:
    """`root` has the files that are in it; `content` is the record as it lies there, `signature` may be b""."""

    path: Path
    record: PackRecord
    content: bytes
    signature: bytes
    root: Packed

    @property
    def digest(self) -> str:
        """What tells it from other packs."""
        return digest(self.content)

    @property
    def missing(self) -> list[str]:
        """The files that a delta leaves to its base, wholly or in part."""
        return [name for name in self.record.files if name not in self.root.members]

    def check(self) -> None:
        """Digest all of it.

        Raises:
            BundleError: a file is not the one that was packed.
        """
        for name in self.root.members:
            self.check_file(name)

    def check_file(self, name: str) -> None:
        """As `check`, for one."""
        found, wanted = sha256_of(self.root / name), self.record.members[name].sha256
        if found != wanted:
            raise BundleError(f"{self.path}/{name}: altered, SHA-256 {found}, expected {wanted}; copy the pack again")


def is_pack(path: Path) -> bool:
    """Whether it is a file that begins as one does."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def open_pack(path: Path) -> Pack:
    """Map the file `path` and check what it says of itself; `Pack.check` digests its files.

    Raises:
        BundleError: it is no pack, is cut short, is of a newer version, or holds something that no pack should.
    """
    path = path.resolve()
    try:
        with path.open("rb") as file:
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        members = dict(_members(infos, mapped, path))
    except FileNotFoundError:
        raise BundleError(f"{path}: there is no such file") from None
    except BundleError:
        raise
    except (OSError, ValueError, NotImplementedError, OverflowError, struct.error, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: not a whole pack ({error}); {_AGAIN}") from None
    views = {name: mapped[offset : offset + size] for name, (offset, size) in members.items()}
    content, signature = bytes(views.pop(RECORD, b"")), bytes(views.pop(SIGNATURE, b""))
    if not content:
        raise BundleError(f"{path}: no pack, {RECORD} is missing; write one with: edgediffusion pack BUNDLE -o FILE")
    record = parse_record(content, path)
    _check_members({name: len(view) for name, view in views.items()}, record, path)
    root = Packed(path, views, {name: offset for name, (offset, _) in members.items()})
    return Pack(path, record, content, signature, root)


def _members(infos: list[zipfile.ZipInfo], mapped: memoryview, path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Offset and size of each."""
    if sum(info.file_size for info in infos) > len(mapped):
        raise BundleError(f"{path}: holds files that lie over one another; do not use it")
    seen = set()
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise BundleError(
                f"{path}: {info.filename!r} is compressed or encrypted, which no pack's are; do not use it"
            )
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise BundleError(f"{path}: {info.filename!r} is a link or no file; do not use it")
        if info.filename in seen:
            raise BundleError(f"{path}: {info.filename!r} is there twice; do not use it")
        if info.filename == RECORD and info.file_size > MAX_BYTES:
            raise BundleError(f"{path}: {RECORD} of {info.file_size} bytes, {MAX_BYTES} at most; do not use it")
        seen.add(info.filename)
        magic, name, extra = _LOCAL_HEADER.unpack_from(mapped, info.header_offset)
        offset = info.header_offset + _LOCAL_HEADER.size + name + extra
        if magic != _MAGIC or offset + info.file_size > len(mapped):
            raise BundleError(f"{path}: {info.filename!r} is not where the pack says; {_AGAIN}")
        yield info.filename, (offset, info.file_size)


def _check_members(sizes: dict[str, int], record: PackRecord, path: Path) -> None:
    members = record.members
    for name, size in sizes.items():
        if name not in members:
            raise BundleError(f"{path}: holds {name!r}, which its record does not name; do not use it")
        if size != (wanted := members[name].bytes):
            raise BundleError(f"{path}: {name} has {size} bytes, expected {wanted}; copy the pack again")
    if MANIFEST not in record.files:
        raise BundleError(f"{path}: its record names no {MANIFEST}; do not use it")
    if record.since is None and (missing := sorted(record.files.keys() - sizes.keys())):
        raise BundleError(f"{path}: {missing[0]} is missing; copy the pack again")
