"""All of a new folder, or nothing."""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.manifest import MANIFEST

BUNDLE, NOTES = "bundle", "notes"
UNFINISHED, LOCK = ".unfinished", "lock"


@contextmanager
def staging(out: Path, *, keep: bool) -> Iterator[Path]:
    """A folder whose `bundle` becomes `out` at the end. When anything goes wrong before it is gone, unless `keep`.

    An empty `out` is filled, with the manifest last, since it may be a mount point that nothing can take the place of.
    What one that was killed has left is taken away, but for what it was told to keep.
    """
    partial = f".{out.name}.partial"
    _clear(out if out.is_dir() else out.parent, out.name)
    if out.exists() and not (out.is_dir() and all(keep and path.name == partial for path in out.iterdir())):
        raise UsageError(f"{out}: already exists; name a new folder, or remove it first")
    place = out if out.exists() else out.parent
    kept = nullcontext(place / partial)
    try:
        with (
            kept if keep else tempfile.TemporaryDirectory(UNFINISHED, f".{out.name}.", place) as name,
            ExitStack() as held,
        ):
            folder = Path(name)
            folder.mkdir(exist_ok=True)
            _lock(folder, out, held)
            for child in (BUNDLE, NOTES):
                (folder / child).mkdir(exist_ok=True)
            yield folder
            if place == out:
                for path in sorted((folder / BUNDLE).iterdir(), key=lambda path: path.name == MANIFEST):
                    path.rename(out / path.name)
            else:
                (folder / BUNDLE).rename(out)
            if keep:
                held.close()
                shutil.rmtree(folder)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error})") from error


def _lock(folder: Path, out: Path, held: ExitStack) -> None:
    """Show that `folder` is worked in, until `held` is closed or the process dies."""
    import filelock

    try:
        held.enter_context(filelock.FileLock(folder / LOCK, timeout=0))
    except filelock.Timeout:
        raise UsageError(f"{out}: another export to it is under way; wait for it, or name another folder") from None


def _clear(place: Path, name: str) -> None:
    import filelock

    for lock in place.glob(f".{glob.escape(name)}.*{UNFINISHED}/{LOCK}"):
        with suppress(filelock.Timeout), filelock.FileLock(lock, timeout=0):
            shutil.rmtree(lock.parent, ignore_errors=True)
