"""What a pack says of itself: its first member, which the signature is of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.json_object import parse_object
from edgediffusion.engines.typed import check_types

from ..manifest import FileRecord
from .patches import Patch, Piece

RECORD, SIGNATURE = "edgediffusion-pack.json", "edgediffusion-pack.sig"
SCHEMA = 2
MAX_BYTES = 16 << 20  # of the record


@dataclass(frozen=True, kw_only=True)
class PackRecord:
    """The files of the bundle, each with its size and digest.

    `target` is the GPU architecture that the engines among them were chosen for, such as "sm_87"; None where there was
    no choice. `since` is the digest of the record of the pack that a delta was made against: what that has is left out,
    and of the files in `patches` all but what is new.
    """

    version: str
    files: Mapping[str, FileRecord]
    target: str | None = None
    since: str | None = None
    patches: Mapping[str, Patch] = field(default_factory=dict)

    @property
    def members(self) -> dict[str, FileRecord]:
        """What may be in the pack: the files, and what is new in those that are patched."""
        return {**self.files, **{new_name(name): patch.new for name, patch in self.patches.items()}}

    def to_json(self) -> bytes:
        """The member's content."""
        record = dataclasses.asdict(self, dict_factory=lambda pairs: {k: v for k, v in pairs if v is not None})
        return (json.dumps({"schema": SCHEMA} | record, indent=1) + "\n").encode()


def parse_record(content: bytes, pack: object) -> PackRecord:
    """Read what `to_json` wrote; `pack` is named in the errors.

    Raises:
        BundleError: it is no such record, is of a newer version, or names a file outside of the bundle.
    """
    try:
        record = parse_object(content)
        if (schema := record.pop("schema")) > SCHEMA:
            raise BundleError(
                f"{pack}: schema {schema}, this version reads up to {SCHEMA}; pip install --upgrade edgediffusion"
            )
        files = {name: FileRecord(**file) for name, file in record.pop("files").items()}
        patches = {name: _parse_patch(patch) for name, patch in record.pop("patches", {}).items()}
        parsed = PackRecord(files=files, patches=patches, **record)
        check_types(parsed, "pack")
        if bad := [name for name, file in parsed.members.items() if file.bytes < 0 or file.sha256 is None]:
            raise ValueError(f"{bad[0]} has no size or digest")
        for name, patch in patches.items():
            if parsed.since is None or new_name(name) in files or not patch.valid(files[name].bytes):
                raise ValueError(f"the patch of {name} makes no such file")
    except BundleError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{pack}: {RECORD} cannot be read ({error!r}); copy the pack again") from None
    check_names(parsed.files, pack)
    return parsed


def _parse_patch(record: dict[str, Any]) -> Patch:
    base, new = (FileRecord(**record[key]) for key in ("base", "new"))
    return Patch(base=base, new=new, pieces=[Piece(**piece) for piece in record["pieces"]])


def new_name(name: str) -> str:
    """The member that has what is new in the file `name`."""
    return f".new/{name}"


def digest(content: bytes) -> str:
    """Of a record: what tells packs apart."""
    return hashlib.sha256(content).hexdigest()


def check_names(names: Mapping[str, FileRecord], pack: object) -> None:
    """BundleError where a name could lead out of the folder, or two could be the same file, on any system."""
    seen: dict[str, str] = {}
    for name in names:
        windows = PureWindowsPath(name)
        plain = str(PurePosixPath(name)) == name and name.isprintable() and not set(name) & set('\\:*?"<>|')
        if not plain or name == "." or windows.root or ".." in windows.parts or name.startswith("/"):
            raise BundleError(f"{pack}: holds {name!r}, which is no plain path inside of a bundle; do not use it")
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise BundleError(
                f"{pack}: holds {other!r} and {name!r}, which are one file on some systems; do not use it"
            )
