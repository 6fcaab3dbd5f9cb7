"""Compiles `engines/kernels/ort_operators.c` where there is a C compiler; without one the package is all Python."""

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

SOURCE, KERNELS = Path("engines/kernels/ort_operators.c"), Path("engines/kernels/kernels.cu")


class CustomBuildHook(BuildHookInterface):
    """What hatchling calls before it makes a wheel, an editable one too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the wheel is for this platform."""
        compiler = os.environ.get("CC") or shutil.which("cc")
        if sys.platform != "linux" or compiler is None:
            return
        library = SOURCE.with_suffix(".so")
        sources = b"".join(Path(self.root, name).read_bytes() for name in (SOURCE, KERNELS))
        define = f'-DSOURCES="{hashlib.sha256(sources).hexdigest()}"'
        flags = ["-std=c99", "-O2", "-shared", "-fPIC", define]
        command = [*compiler.split(), *flags, "-o", str(library), str(SOURCE), "-ldl"]
        try:
            subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", "").strip() or error
            self.app.display_warning(f"{SOURCE} is left out, so GPUs are slower: {reason}")
            return
        build_data["artifacts"].append(str(library))
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
