"""The data recipe of the built-in model: emoji pictures of 128x128 with captions, in one packed file.

    python -m edgediffusion.export.builtin.data SOURCES OUT

SOURCES is a folder with three packages as `npm pack` and `apt-get download` fetch them; one that is missing is fetched:

    lobehub-fluent-emoji-3d-1.1.0.tgz  emojibase-data-17.0.0.tgz  fonts-noto-color-emoji_*_all.deb

OUT is a zip: `index.json` (records, versions, licences) and `images/<style>/<id>.webp`. Packing needs fontTools; `load`
needs numpy and Pillow only. Recoloured pictures are not stored, `load` computes them. Licences and counts: DATA.md.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgediffusion.engines.errors import EdgeDiffusionError, UsageError

from .captions import captions, recoloured_captions
from .colours import F32, U8, recolour_to
from .packages import fetch, fluent_pictures, noto_pictures, read_deb, read_tar, source_entry
from .records import Record, chosen, describe

SIZE = 128
MARGIN = 4
STYLES = ("3d", "noto")
FORMAT = 1
RECOLOURED_WEIGHT = 0.3
#: How often a group is drawn in training: what people ask for more often than its share, roles and signs less.
GROUP_WEIGHTS = {"animals-nature": 1.5, "food-drink": 1.5, "people-body": 0.5, "symbols": 0.5, "flags": 0.5}


@dataclass(frozen=True)
class Dataset:
    """Decoded pictures with what a user may type to get each."""

    images: U8  # (n, 128, 128, 3) RGB on white
    captions: list[list[str]]  # per picture, all variants, most literal first
    weights: F32  # (n,) sampling weight: GROUP_WEIGHTS, times RECOLOURED_WEIGHT for recolourings
    styles: list[str]


def frame(picture: Image.Image) -> tuple[U8, NDArray[np.bool_]]:
    """RGBA of any size -> (SIZE, SIZE, 3) uint8 on white, MARGIN around the subject, and its (SIZE, SIZE) mask."""
    picture = picture.convert("RGBA")
    box = picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None:
        raise UsageError("an empty picture")
    scale = (SIZE - 2 * MARGIN) / max(box[2] - box[0], box[3] - box[1])
    size = (max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale)))
    corner = ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2)
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    image, alpha = Image.new("RGB", (SIZE, SIZE), "white"), Image.new("L", (SIZE, SIZE))
    image.paste(flat.crop(box).resize(size, Image.Resampling.LANCZOS), corner)
    alpha.paste(picture.getchannel("A").crop(box).resize(size, Image.Resampling.LANCZOS), corner)
    return np.asarray(image), np.asarray(alpha) > 127


def encode(image: U8) -> bytes:
    """Lossless webp."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, quality=75, method=4)
    return buffer.getvalue()


def write_pack(path: Path, records: list[Record], images: list[bytes], sources: list[dict[str, str]]) -> None:
    """The packed file; written beside `path` first, then renamed."""
    index = {"format": FORMAT, "size": SIZE, "sources": sources, "records": [asdict(r) for r in records]}
    partial = path.with_name(path.name + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as pack:
        pack.writestr(zipfile.ZipInfo("index.json"), json.dumps(index, separators=(",", ":")))
        for record, blob in zip(records, images, strict=True):
            pack.writestr(zipfile.ZipInfo(f"images/{record.style}/{record.id}.webp"), blob)
    partial.replace(path)


def build(sources: Path, out: Path) -> list[Record]:
    """Read the three packages, write the packed file, return its records."""
    found = fetch(sources)
    meta = read_tar(found["emojibase"].read_bytes(), re.compile(r"package/(en/data|meta/groups)\.json$"))
    rows = json.loads(meta["package/en/data.json"])
    groups = json.loads(meta["package/meta/groups.json"])
    font = read_deb(found["noto"], re.compile(r"/NotoColorEmoji\.ttf$"))
    pictures = {
        "3d": fluent_pictures(read_tar(found["3d"].read_bytes(), re.compile(r"package/assets/.*\.webp$"))),
        "noto": noto_pictures(next(iter(font.values()))),
    }
    jobs = [(style, *row) for style in STYLES for row in chosen(rows, groups) if row[0] in pictures[style]]

    def one(job: tuple[str, str, str, str, str]) -> tuple[Record, bytes]:
        style, id, label, group, subgroup = job
        image, mask = frame(Image.open(io.BytesIO(pictures[style][id])))
        return describe(id, style, label, group, subgroup, image, mask), encode(image)

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(one, jobs))
    records = [record for record, _ in done]
    write_pack(out, records, [blob for _, blob in done], [source_entry(path) for path in found.values()])
    return records


def read_index(pack: zipfile.ZipFile) -> list[Record]:
    """The records of an open packed file."""
    index = json.loads(pack.read("index.json"))
    if index["format"] != FORMAT:
        raise UsageError(f"packed data has format {index['format']}, this version reads {FORMAT}: pack it again")
    return [Record(**{**r, "subjects": tuple(r["subjects"]), "targets": tuple(r["targets"])}) for r in index["records"]]


def _entries(record: Record, blob: bytes) -> list[tuple[U8, list[str], float, str]]:
    image = np.asarray(Image.open(io.BytesIO(blob)).convert("RGB"))
    if image.shape != (SIZE, SIZE, 3):
        raise UsageError(f"images/{record.style}/{record.id}.webp is {image.shape}, expected {(SIZE, SIZE, 3)}")
    weight = GROUP_WEIGHTS.get(record.group, 1.0)
    out = [(image, captions(record.subjects, record.colour, record.style), weight, record.style)]
    for target in record.targets:
        if words := recoloured_captions(record.subjects, target, record.style):
            recoloured = recolour_to(image, record.hue, record.saturation, record.value, target)
            out.append((recoloured, words, weight * RECOLOURED_WEIGHT, record.style))
    return out


def load(path: Path, workers: int = 16) -> Dataset:
    """Every picture of a packed file and its recolourings, in the order of the index.

    Threads, not processes: Pillow and NumPy release the lock, and a trainer that holds a GPU context must not fork.
    Raises UsageError where the file is missing or is no packed file.
    """
    try:
        with zipfile.ZipFile(path) as pack:
            records = read_index(pack)
            blobs = [pack.read(f"images/{r.style}/{r.id}.webp") for r in records]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            entries = [e for part in pool.map(_entries, records, blobs) for e in part]
    except FileNotFoundError as error:
        raise UsageError(f"no packed data at {path}: make it with edgediffusion.export.builtin.data") from error
    except (zipfile.BadZipFile, KeyError, TypeError, json.JSONDecodeError, OSError) as error:
        raise UsageError(f"{path} is no packed data or is damaged ({error}): pack it again") from error
    if not entries:
        raise UsageError(f"{path} holds no pictures: pack it again")
    return Dataset(
        images=np.stack([e[0] for e in entries]),
        captions=[e[1] for e in entries],
        weights=np.array([e[2] for e in entries], np.float32),
        styles=[e[3] for e in entries],
    )


def main(argv: list[str] | None = None) -> int:
    """The command line; an error is one line on stderr and status 2."""
    parser = argparse.ArgumentParser(prog="edgediffusion.export.builtin.data", description="Pack the emoji pictures.")
    parser.add_argument("sources", type=Path, help="folder with the packages; missing ones are fetched into it")
    parser.add_argument("out", type=Path, help="the packed file to write")
    options = parser.parse_args(argv)
    try:
        records = build(options.sources, options.out)
    except (EdgeDiffusionError, ImportError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    counts = {style: sum(r.style == style for r in records) for style in STYLES}
    sys.stderr.write(f"{options.out}: {options.out.stat().st_size} bytes, pictures {counts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
