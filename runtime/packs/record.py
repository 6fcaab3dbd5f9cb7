"""What a pack says of itself: its first member, which the signature is of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.json_object import parse_object
from edgediffusion.engines.typed import check_types

from ..manifest import FileRecord

RECORD, SIGNATURE = "edgediffusion-pack.json", "edgediffusion-pack.sig"
SCHEMA = 1
MAX_BYTES = 16 << 20  # of the record


@dataclass(frozen=True, kw_only=True)
class PackRecord:
    """The files of the bundle, each with its size and digest.

    `target` is the GPU architecture that the engines among them were chosen for, such as "sm_87"; None where there was
    no choice. `since` is the digest of the record of the pack that a delta was made against: what that has is left out.
    """

    version: str
    files: Mapping[str, FileRecord]
    target: str | None = None
    since: str | None = None

    def to_json(self) -> bytes:
        """The member's content."""
        return (json.dumps({"schema": SCHEMA} | dataclasses.asdict(self), indent=1) + "\n").encode()


def parse_record(content: bytes, pack: object) -> PackRecord:
    """Read what `to_json` wrote; `pack` is named in the errors.

    Raises:
        BundleError: it is no such record, is of a newer version, or names a file outside of the bundle.
    """
    try:
        record = parse_object(content)
        if (schema := record.pop("schema")) != SCHEMA:
            raise BundleError(
                f"{pack}: schema {schema}, this version reads {SCHEMA}; pip install --upgrade edgediffusion"
            )
        files = {name: FileRecord(**file) for name, file in record.pop("files").items()}
        parsed = PackRecord(files=files, **record)
        check_types(parsed, "pack")
        if bad := [name for name, file in files.items() if file.bytes < 0 or file.sha256 is None]:
            raise ValueError(f"{bad[0]} has no size or digest")
    except BundleError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{pack}: {RECORD} cannot be read ({error!r}); copy the pack again") from None
    check_names(parsed.files, pack)
    return parsed


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
