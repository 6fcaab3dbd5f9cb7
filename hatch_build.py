"""Compiles `engines/kernels/ort_operators.c` where there is a C compiler; without one the package is all Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("engines/kernels/ort_operators.c")


class CustomBuildHook(BuildHookInterface):
    """What hatchling calls before it makes a wheel, an editable one too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say that the wheel is for this platform."""
        compiler = os.environ.get("CC") or shutil.which("cc")
        if sys.platform != "linux" or compiler is None:
            return
        library = SOURCE.with_suffix(".so")
        flags = ("-std=c99", "-O2", "-shared", "-fPIC")
        subprocess.run([*compiler.split(), *flags, "-o", library, SOURCE, "-ldl"], cwd=self.root, check=True)
        build_data["artifacts"].append(str(library))
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"
