"""The commands `edgediffusion pack` and `edgediffusion unpack`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgediffusion.engines.errors import UsageError

from ..arguments import Parser, add_trust, print_line
from .read import Pack, is_pack, open_pack
from .signatures import check_signature
from .unpack import unpack as write_folder
from .write import pack_bundle


def pack(arguments: Sequence[str]) -> int:
    """Write a bundle to one file, to be sent, checked and run as it is."""
    parser = Parser("pack", pack.__doc__ or "")
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="its folder")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="such as model.edz; never overwritten")
    add("--engines", action="store_true", help="with the engines that were built for it, in the bundle or the cache")
    add("--target", metavar="ARCH", help="of those the ones for this GPU architecture, such as sm_87")
    add("--since", type=Path, metavar="PACK", help="a delta: only what has changed since this pack, within files too")
    add("--sign", type=Path, metavar="KEY", help="sign with this private key: a PEM file of Ed25519")
    options = parser.parse_args(arguments)
    if options.target is not None and not options.engines:
        raise UsageError("--target chooses among engines; add --engines, or leave it out")
    record = pack_bundle(
        options.bundle,
        options.output,
        engines=options.engines,
        target=options.target,
        key=options.sign,
        since=None if options.since is None else open_pack(options.since),
    )
    held, parts = len(record.files) - len(open_pack(options.output).missing), len(record.patches)
    some = f"and {parts} in part, " if parts else ""
    print_line(f"{options.output}: {held} of {len(record.files)} files, {some}{options.output.stat().st_size} bytes")
    return 0


def unpack(arguments: Sequence[str]) -> int:
    """Write a pack's bundle to a folder; again, to go on after an interruption or to mend what was damaged."""
    parser = Parser("unpack", unpack.__doc__ or "")
    add = parser.add_argument
    add("pack", type=Path, metavar="PACK", help="the file")
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder")
    add("--base", type=Path, metavar="PACK_OR_DIR", help="what a delta was made against, packed or unpacked")
    add_trust(parser)
    options = parser.parse_args(arguments)
    opened = open_trusted(options.pack, options.trust)
    written = write_folder(opened, options.output, options.base)
    print_line(f"{options.output}: {len(written)} of {len(opened.record.files)} files written, the others were there")
    return 0


def check_pack(path: Path, key: Path | None) -> bool:
    """Digest all of the pack `path`, and see that it was signed with `key`; return whether it is a delta.

    Raises:
        BundleError: it is not as it was packed, or was not signed with that key.
        UsageError: a key is given for what is no pack.
    """
    if not is_pack(path):
        if key is not None:
            raise UsageError(f"{path}: no pack, so it has no signature; leave out --trust")
        return False
    opened = open_trusted(path, key)
    opened.check()
    return bool(opened.missing)


def open_trusted(path: Path, key: Path | None) -> Pack:
    """The pack, whose signature is one of the public key `key` where that is told."""
    opened = open_pack(path)
    if key is not None:
        check_signature(opened, key)
    return opened
