"""The C library of `kernels/`, made by hatch_build.py where there is a C compiler."""

from __future__ import annotations

import ctypes
import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent / "kernels"
LIBRARY = FOLDER / "ort_operators.so"
SOURCES = ("arena.c", "driver.h", "kernels.cu", "ort_operators.c")  # as hatch_build.py has them


class OtherSources(OSError):
    """It was compiled of other sources than are here."""


def load_library() -> ctypes.CDLL:
    """The library.

    Raises:
        OtherSources: see there.
        OSError: it is missing, since there was no compiler, or it is another machine's.
    """
    library = ctypes.CDLL(str(LIBRARY))
    digest = (ctypes.c_char * 65).in_dll(library, "edgediffusion_sources").value.decode()
    if digest != hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in SOURCES)).hexdigest():
        raise OtherSources(f"{LIBRARY.name} was compiled of other sources than are here")
    return library
