"""A file told by an older one: what is the same is named, what is new held, weights with LoRAs added are computed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.files import PIECE, read_pieces
from edgediffusion.engines.packed import File, size_of

from ..low_rank import FLOATS, FactorFile, fuse
from ..manifest import FileRecord
from ..tensors import Placed, read_header

WORTH = 1 << 16  # bytes that must be saved, or a file is held whole
_LEAST = 1 << 8  # bytes that are the same and worth a piece, which takes about half of that in the record


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The next `bytes` of a file: those of the base from `base` on, or, where it is None, the next new ones.

    Where `weight` is not None, the base has that weight there, in `dtype`, and LoRAs are to be added to it, see `fuse`.
    """

    bytes: int
    base: int | None = None
    weight: str | None = None
    dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A file as pieces, one after the other; `new` is the file of all new bytes, `base` the one that it was told by."""

    base: FileRecord
    new: FileRecord
    pieces: Sequence[Piece]

    def valid(self, size: int) -> bool:
        """Whether the pieces make a file of `size` bytes, and take nothing from beyond the base."""
        new = sum(piece.bytes for piece in self.pieces if piece.base is None)
        return (
            all(piece.bytes > 0 for piece in self.pieces)
            and all(0 <= p.base <= self.base.bytes - p.bytes for p in self.pieces if p.base is not None)
            and all(p.dtype in FLOATS and p.base is not None for p in self.pieces if p.weight is not None)
            and new == self.new.bytes
            and sum(piece.bytes for piece in self.pieces) == size
        )


def make_patch(file: File, base: File, record: FileRecord, factors: File) -> Patch | None:
    """`file` told by `base`, whose record is `record`; None where that saves less than `WORTH`.

    Weights are compared under their names in safetensors files. `factors` may have those of `file`.
    """
    known = FactorFile(factors)
    olds, nothing = _regions(base), Placed("", (), 0, 0)
    pieces = _joined(
        piece
        for name, new in _regions(file).items()
        for piece in _compare(name, file, new, base, olds.get(name, nothing), known)
    )
    new = sum(piece.bytes for piece in pieces if piece.base is None)
    if size_of(file) - new < WORTH:
        return None
    patch = Patch(base=record, new=FileRecord(bytes=new, sha256=""), pieces=pieces)
    digest = hashlib.sha256()
    for part in new_bytes(patch, file):
        digest.update(part)
    return replace(patch, new=FileRecord(bytes=new, sha256=digest.hexdigest()))


def new_bytes(patch: Patch, file: File) -> Iterator[bytes]:
    """The content of `patch.new`, from the file that the patch was made of."""
    position = 0
    for piece in patch.pieces:
        if piece.base is None:
            yield from read_pieces(file, position, piece.bytes)
        position += piece.bytes


def apply_patch(patch: Patch, base: File, new: File, factors: File) -> Iterator[bytes]:
    """The content of the file; `new` has what `new_bytes` gave.

    Raises:
        BundleError: `base` is not what the patch was made of.
        ValueError: it cannot be followed.
    """
    if not patch.base.fits(base):
        raise BundleError(f"{base}: altered, or of another model; name the pack that this one was made against")
    known, taken = FactorFile(factors), 0
    for piece in patch.pieces:
        if piece.base is None:
            yield from read_pieces(new, taken, piece.bytes)
            taken += piece.bytes
        elif piece.weight is None:
            yield from read_pieces(base, piece.base, piece.bytes)
        else:
            yield from _fused(piece, base, known)


def _fused(piece: Piece, base: File, factors: FactorFile) -> Iterator[bytes]:
    assert piece.base is not None
    assert piece.weight is not None
    assert piece.dtype is not None
    with base.open("rb") as opened:
        opened.seek(piece.base)
        yield from fuse(opened, piece.dtype, factors.of(piece.weight))


def _regions(file: File) -> dict[str, Placed]:
    """What is to be compared: of a safetensors file its header, called "", and its weights; of others all of it."""
    whole = Placed("", (), 0, size_of(file))
    try:
        weights = sorted(read_header(file)[1].items(), key=lambda item: item[1].offset)
    except ValueError:
        return {"": whole}
    start = weights[0][1].offset if weights else whole.length
    ends = [start, *(at.offset + at.length for _, at in weights)]
    gapless = [at.offset for _, at in weights] == ends[:-1] and ends[-1] == whole.length
    return {"": replace(whole, length=start), **dict(weights)} if gapless else {"": whole}


def _compare(name: str, file: File, new: Placed, base: File, old: Placed, factors: FactorFile) -> Iterator[Piece]:
    """A region of `file` by one of `base`: as it is, with LoRAs added, or but for what lies between both its ends."""
    shorter = min(new.length, old.length)
    head = _common(read_pieces(file, new.offset, shorter), read_pieces(base, old.offset, shorter))
    if head < new.length and (new.dtype, new.shape) == (old.dtype, old.shape) and new.dtype in FLOATS:
        piece = Piece(bytes=new.length, base=old.offset, weight=name, dtype=new.dtype)
        if _makes(piece, base, factors, file, new.offset):
            yield piece
            return
    ends = (new.offset + new.length, old.offset + old.length)
    tail = _common(_read_back(file, ends[0], shorter - head), _read_back(base, ends[1], shorter - head))
    head, tail = (same if same >= _LEAST or same == new.length else 0 for same in (head, tail))
    yield Piece(bytes=head, base=old.offset)
    yield Piece(bytes=new.length - head - tail)
    yield Piece(bytes=tail, base=ends[1] - tail)


def _common(some: Iterator[bytes], other: Iterator[bytes]) -> int:
    """How many bytes are the same until the first that is not."""
    count = 0
    for one, two in zip(some, other, strict=True):
        if one != two:
            return count + int(np.argmax(np.frombuffer(one, np.uint8) != np.frombuffer(two, np.uint8)))
        count += len(one)
    return count


def _read_back(file: File, end: int, size: int) -> Iterator[bytes]:
    """The `size` bytes before `end`, from the last to the first."""
    for stop in range(end, end - size, -PIECE):
        start = max(stop - PIECE, end - size)
        yield b"".join(read_pieces(file, start, stop - start))[::-1]


def _makes(piece: Piece, base: File, factors: FactorFile, file: File, start: int) -> bool:
    """Whether what the piece stands for is what `file` has from `start` on."""
    try:
        with file.open("rb") as opened:
            opened.seek(start)
            same = all(part == opened.read(len(part)) for part in _fused(piece, base, factors))
            return same and opened.tell() == start + piece.bytes
    except (OSError, ValueError):  # no LoRA there
        return False


def _joined(pieces: Iterable[Piece]) -> list[Piece]:
    """The same in as few pieces as can be."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last is not None and last.weight is piece.weight is None and _follows(piece, last):
            joined[-1] = replace(last, bytes=last.bytes + piece.bytes)
        elif piece.bytes:
            joined.append(piece)
    return joined


def _follows(piece: Piece, last: Piece) -> bool:
    """Whether both are new, or the one lies behind the other in the base."""
    if last.base is None or piece.base is None:
        return last.base is piece.base
    return piece.base == last.base + last.bytes
