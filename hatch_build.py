"""Compiles the C of `engines/kernels` where there is a C compiler; without one the package is all Python."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("engines/kernels")
LIBRARY = FOLDER / "ort_operators.so"
SOURCES = ("arena.c", "driver.h", "kernels.cu", "ort_operators.c")  # as engines/ort_library.py has them


class CustomBuildHook(BuildHookInterface):
    """What hatchling calls before it makes a wheel, an editable one too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the wheel is for this platform."""
        compiler = os.environ.get("CC") or shutil.which("cc")
        if sys.platform != "linux" or compiler is None:
            return
        content = b"".join(Path(self.root, FOLDER, name).read_bytes() for name in SOURCES)
        define = f'-DSOURCES="{hashlib.sha256(content).hexdigest()}"'
        flags = ["-std=c99", "-O2", "-shared", "-fPIC", define]
        files = [str(FOLDER / name) for name in SOURCES if name.endswith(".c")]
        command = [*compiler.split(), *flags, "-o", str(LIBRARY), *files, "-ldl", "-lpthread"]
        try:
            subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "").strip() or error
            self.app.display_warning(f"{LIBRARY} is left out, so GPUs are slower: {reason}")
            return
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
