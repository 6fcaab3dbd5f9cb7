"""Engines on the way to another machine of the same kind: a tar file of plans and their sidecars."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from .errors import UsageError
from .files import replacing
from .store import PLAN, SIDECAR, DamagedEngine, Entry, Store, read_sidecar


def export_engines(entries: Iterable[Entry], path: Path) -> list[Entry]:
    """Write these engines to the new file `path`.

    Raises:
        UsageError: there is such a file.
        DamagedEngine: an engine is not what was built; nothing is written.
    """
    if path.exists():
        raise UsageError(f"{path}: is there already; choose another name")
    written = list(entries)
    with replacing(path) as partial, tarfile.open(partial, "w") as archive:
        for entry in written:
            entry.read()
            for file in (entry.sidecar, entry.plan):
                archive.add(file, file.name)
    return written


def import_engines(path: Path, store: Store) -> list[Entry]:
    """Take the engines of the file `path` into `store`; whether they fit this machine is seen when they are looked for.

    Raises:
        UsageError: it is no file of engines, holds something else as well, or an engine in it is damaged.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    _unpack(archive, member, path, Path(scratch))
        except (OSError, tarfile.TarError) as error:
            raise UsageError(f"{path}: no file of engines ({error}); export them again") from None
        try:
            read = [read_sidecar(sidecar) for sidecar in sorted(Path(scratch).glob(f"*{SIDECAR}"))]
            plans = [entry.read() for entry in read]
        except DamagedEngine as error:
            raise UsageError(f"{path}: a damaged engine ({error}); export them again") from None
    return [store.add(entry.recipe, entry.built, plan) for entry, plan in zip(read, plans, strict=True)]


def _unpack(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, folder: Path) -> None:
    name = PurePosixPath(member.name)
    file = archive.extractfile(member) if member.isreg() else None
    if file is None or name.name != member.name or name.suffix not in (PLAN, SIDECAR):
        raise UsageError(f"{path}: holds {member.name!r}, which is no part of an engine; do not use it")
    with file, (folder / name).open("wb") as target:
        shutil.copyfileobj(file, target)
