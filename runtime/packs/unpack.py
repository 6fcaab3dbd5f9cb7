"""A pack to a folder. The manifest is written last: until then there is no bundle, and the same command goes on."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgediffusion.engines.errors import BundleError, UsageError
from edgediffusion.engines.files import PARTIAL, alone, read_pieces, replacing
from edgediffusion.engines.packed import File, Packed

from ..low_rank import FACTORS
from ..manifest import MANIFEST, FileRecord
from .patches import apply_patch
from .read import Pack, is_pack, open_pack
from .record import new_name

_LOCK = ".edgediffusion-unpack.lock"


def unpack(pack: Pack, folder: Path, base: Path | None = None) -> list[str]:
    """Write the bundle to `folder`, and return the names of the files that were not there yet.

    What an earlier call had finished stays, and in a bundle that is the pack's, files that are missing or damaged are
    written again. `base` has what a delta leaves out: a pack, or a folder that one was unpacked to.

    Raises:
        BundleError: a file is not as it was packed, or is neither here nor in `base`; what is there does not open.
        UsageError: something else is in `folder`, or it cannot be written.
    """
    if pack.missing and base is None:
        raise BundleError(
            f"{pack.path}: a delta, which leaves {len(pack.missing)} of {len(pack.record.files)} files "
            "to the pack that it was made against; name that with --base"
        )
    root = pack.root if base is None else _root(base)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / _LOCK):
            return list(_fill(pack, folder, root))
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written: {error.strerror or error}; the same command goes on where this one stopped"
        ) from None


def _root(base: Path) -> File:
    return open_pack(base).root if is_pack(base) else base


def _fill(pack: Pack, folder: Path, base: File) -> Iterator[str]:
    files = pack.record.files
    for left in folder.rglob(f"*{PARTIAL}"):  # by one that was killed: the lock is ours
        left.unlink()
    ours = files[MANIFEST].fits(folder / MANIFEST)
    _check_folder(folder, pack)
    wanted = [name for name in files if not files[name].fits(folder / name)]
    if not ours and (other := next((name for name in wanted if (folder / name).exists()), None)) is not None:
        raise UsageError(f"{folder / other}: is there already, and not as in {pack.path}; choose another folder")
    needed, free = sum(files[name].bytes for name in wanted), shutil.disk_usage(folder).free
    if needed > free:
        raise UsageError(
            f"{folder}: {free >> 20} MiB free, {pack.path} takes {needed >> 20} more; choose another place"
        )
    patches = pack.record.patches
    fused = [name for name, patch in patches.items() if any(piece.weight is not None for piece in patch.pieces)]
    for name in sorted(wanted, key=lambda name: (name == MANIFEST, name in fused)):  # LoRAs first
        if name in pack.root.members or name not in patches:
            source = pack.root if name in pack.root.members else base
            _write(folder / name, _copied(source, name), files[name], source / name)
        else:
            _write(folder / name, _patched(pack, name, base / name, folder), files[name], pack.root / name)
        yield name


def _check_folder(folder: Path, pack: Pack) -> None:
    """Nothing that the pack does not have, and no links, through which it would write elsewhere."""
    files = {folder / name for name in pack.record.files}
    folders = {parent for file in files for parent in file.parents}
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise UsageError(f"{path}: is a link; choose another folder")
        if path not in files and path not in folders and path.name != _LOCK:
            raise UsageError(f"{path}: is there already, and not in {pack.path}; choose another folder")


def _copied(source: File, name: str) -> Iterator[bytes]:
    try:
        yield from read_pieces(source / name)
    except FileNotFoundError:
        raise BundleError(f"{source}: lacks {name}; name the pack that this one was made against") from None


def _patched(pack: Pack, name: str, base: File, folder: Path) -> Iterator[bytes]:
    factors = (folder / name).parent / FACTORS
    try:
        yield from apply_patch(pack.record.patches[name], base, pack.root / new_name(name), factors)
    except (FileNotFoundError, ValueError) as error:
        raise BundleError(f"{pack.path}: {name} cannot be made ({error}); copy the pack again") from None


def _write(target: Path, pieces: Iterator[bytes], record: FileRecord, source: File) -> None:
    """Nothing is written beyond the size that was declared."""
    target.parent.mkdir(parents=True, exist_ok=True)
    found, left = hashlib.sha256(), record.bytes
    with replacing(target) as partial:
        with partial.open("wb") as file:
            for piece in pieces:
                found.update(piece)
                left -= len(piece)
                if left < 0:
                    break
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        if left or found.hexdigest() != record.sha256:
            whose = (
                "copy the pack again" if isinstance(source, Packed) else "name the pack that this one was made against"
            )
            raise BundleError(f"{source}: altered, or of another model; {whose}")


def unpacked(path: Path) -> Path:
    """The folder in the user's cache that the pack `path` was unpacked to, or is now: for backends that want files.

    Raises:
        BundleError, UsageError: see `open_pack` and `unpack`.
    """
    import platformdirs

    pack = open_pack(path)
    folder = platformdirs.user_cache_path("edgediffusion") / "packs" / pack.digest[:32]
    if not all(_has_size(folder / name, record) for name, record in pack.record.files.items()):
        unpack(pack, folder)
    return folder


def _has_size(path: Path, record: FileRecord) -> bool:
    try:
        return path.stat().st_size == record.bytes
    except OSError:
        return False
