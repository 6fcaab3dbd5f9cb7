"""All of a new folder, or nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.manifest import MANIFEST

BUNDLE, NOTES = "bundle", "notes"


@contextmanager
def staging(out: Path, *, keep: bool) -> Iterator[Path]:
    """A folder whose `bundle` becomes `out` at the end. When anything goes wrong before it is gone, unless `keep`.

    An empty `out` is filled, with the manifest last, since it may be a mount point that nothing can take the place of.
    """
    partial = f".{out.name}.partial"
    if out.exists() and not (out.is_dir() and all(keep and path.name == partial for path in out.iterdir())):
        raise UsageError(f"{out}: already exists; name a new folder, or remove it first")
    place = out if out.exists() else out.parent
    kept = nullcontext(place / partial)
    try:
        with kept if keep else tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=place) as name:
            folder = Path(name)
            for child in (folder, folder / BUNDLE, folder / NOTES):
                child.mkdir(exist_ok=True)
            yield folder
            if place == out:
                for path in sorted((folder / BUNDLE).iterdir(), key=lambda path: path.name == MANIFEST):
                    path.rename(out / path.name)
            else:
                (folder / BUNDLE).rename(out)
            if keep:
                shutil.rmtree(folder)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error})") from error
