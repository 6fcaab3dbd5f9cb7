"""Packages: fetching the ones that hold the pictures and the words, and reading them."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import re
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from edgediffusion.engines.errors import UsageError

from .records import base_id

NPM = {"3d": "@lobehub/fluent-emoji-3d@1.1.0", "emojibase": "emojibase-data@17.0.0"}
DEBIAN = "fonts-noto-color-emoji"


def npm_file(package: str) -> str:
    """The file name `npm pack` gives '@scope/name@1.0.0'."""
    name, _, version = package.rpartition("@")
    return f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"


def fetch(sources: Path) -> dict[str, Path]:
    """Paths of the three packages in `sources`, downloaded there where missing."""
    sources.mkdir(parents=True, exist_ok=True)
    found = {}
    for key, package in NPM.items():
        found[key] = sources / npm_file(package)
        if not found[key].exists():
            _download(["npm", "pack", package], sources, found[key].name)
    debs = sorted(sources.glob(f"{DEBIAN}_*.deb"))
    if not debs:
        _download(["apt-get", "download", DEBIAN], sources, f"{DEBIAN}_*.deb")
        debs = sorted(sources.glob(f"{DEBIAN}_*.deb"))
    return {**found, "noto": debs[-1]}


def _download(command: list[str], folder: Path, pattern: str) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"{pattern} is not in {folder} and `{' '.join(command)}` failed: {error}") from error
    if not list(folder.glob(pattern)):
        raise UsageError(f"`{' '.join(command)}` left no {pattern} in {folder}")


def read_tar(blob: bytes, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """Regular files of a tar archive whose name matches; nothing is written to disk."""
    out = {}
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        for member in tar:
            if member.isfile() and wanted.search(member.name):
                content = tar.extractfile(member)
                out[member.name] = content.read() if content is not None else b""
    return out


def read_deb(path: Path, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """Matching files of a Debian package: an ar archive with a member data.tar.*."""
    blob = path.read_bytes()
    if not blob.startswith(b"!<arch>\n"):
        raise UsageError(f"{path} is no Debian package")
    at = 8
    while at + 60 <= len(blob):
        name, size = blob[at : at + 16].decode().strip().rstrip("/"), int(blob[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return read_tar(blob[at + 60 : at + 60 + size], wanted)
        at += 60 + size + size % 2
    raise UsageError(f"{path} has no member data.tar")


def fluent_pictures(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Package files -> id -> encoded picture."""
    return {base_id(Path(name).stem): blob for name, blob in files.items()}


def noto_pictures(font: bytes) -> dict[str, bytes]:
    """id -> PNG of every code point and ligature in a CBDT colour font."""
    try:
        ttf = importlib.import_module("fontTools.ttLib").TTFont(io.BytesIO(font))
    except ImportError as error:
        raise UsageError("packing needs fontTools: pip install fonttools") from error
    strike = ttf["CBDT"].strikeData[0]
    code = {glyph: f"{point:x}" for point, glyph in ttf.getBestCmap().items()}
    glyphs = {hexcode: glyph for glyph, hexcode in code.items()}
    for lookup in ttf["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            for first, ligatures in getattr(table, "ligatures", {}).items():
                for ligature in ligatures:
                    parts = [code.get(g, "?") for g in (first, *ligature.Component)]
                    glyphs[base_id("-".join(parts))] = ligature.LigGlyph
    out = {}
    for hexcode, glyph in glyphs.items():
        if glyph in strike:
            strike[glyph].ensureDecompiled()
            out[hexcode] = bytes(strike[glyph].imageData)
    return out


def source_entry(path: Path) -> dict[str, str]:
    """File name, digest, and the version and licence that the package itself states."""
    entry = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    if path.suffix == ".deb":
        text = next(iter(read_deb(path, re.compile(r"/copyright$")).values())).decode()
        licences = re.findall(r"^Files:\s+(\S+)(?:\n[A-Z ].*)*?\nLicense:\s+(\S+)", text, re.MULTILINE)
        return {**entry, "version": path.name.split("_")[1], "licence": "; ".join(f"{f}: {x}" for f, x in licences)}
    package = json.loads(read_tar(path.read_bytes(), re.compile(r"package/package\.json$"))["package/package.json"])
    return {**entry, "version": package["version"], "licence": package["license"]}
