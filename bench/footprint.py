"""What a picture takes in memory, what the import takes in time, and what an installation takes on disk."""

from __future__ import annotations

import json
import operator
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from edgediffusion.engines.errors import UsageError

from .benchmark import picture_parser, picture_settings, run, say
from .figures import Figure, paired
from .pictures import drawing_commands
from .processes import Report, execute, in_turn
from .report import installed_versions

IMPORTS_PER_RUN = 10
DIFFUSERS = ("torch", "diffusers", "transformers", "accelerate")
NAMED = ("edgediffusion", "onnxruntime", *DIFFUSERS)


def footprint(arguments: Sequence[str]) -> int:
    """The benchmark `footprint`."""
    parser = picture_parser("footprint", "Memory of a picture, time of the import, size on disk.", runs=5)
    add = parser.add_argument
    add(
        "--install",
        type=Path,
        metavar="DIR",
        help="make virtual environments in the new folder DIR, install with pip, and say what each takes on disk; "
        "of diffusers the versions that are installed here; pip's own settings (PIP_EXTRA_INDEX_URL) say where it "
        "finds torch for CPUs",
    )
    add(
        "--source", type=Path, default=Path(), metavar="PATH", help="what pip installs: a clone (default: .) or a wheel"
    )
    options = parser.parse_args(arguments)
    if options.install is not None and options.install.exists():
        raise UsageError(f"install {options.install} exists; name a new folder")
    if options.install is not None and not options.install.absolute().parent.is_dir():
        raise UsageError(f"install {options.install}: there is no folder {options.install.parent}; make it first")

    def measure(folder: Path) -> list[Figure]:
        figures = peak_memory(options.bundle.absolute(), options.runs, folder, say)
        figures.append(import_time(IMPORTS_PER_RUN * options.runs, folder, say))
        if options.install is not None:
            figures += sizes(options.install.absolute(), options.source.absolute(), say)
        return figures

    return run(picture_settings("footprint", options.bundle), options, measure)


def peak_memory(bundle: Path, runs: int, folder: Path, report: Report) -> list[Figure]:
    """Of whole processes that draw one picture."""
    drawn = in_turn(drawing_commands(bundle, folder, report), runs, folder, report)
    return [
        Figure(
            name=f"{name}, peak memory (ru_maxrss)",
            unit="MB",
            values=tuple(execution.peak_bytes / 1e6 for execution in executions),
        )
        for name, executions in drawn.items()
    ]


def import_time(runs: int, folder: Path, report: Report) -> Figure:
    """What `import edgediffusion.runtime` adds to `import numpy`: whole processes, run by run."""
    imports = {name: [sys.executable, "-c", f"import {name}"] for name in ("numpy", "edgediffusion.runtime")}
    theirs, ours = ([1e3 * e.seconds for e in timed] for timed in in_turn(imports, runs, folder, report).values())
    return paired("import edgediffusion.runtime - import numpy, run by run", "ms", operator.sub, ours, theirs)


def sizes(folder: Path, source: Path, report: Report) -> list[Figure]:
    """On disk: `source` with its extra `cpu`, and diffusers, in fresh environments that stay in `folder`.

    What counts is site-packages, byte code included, less what an empty environment has there. Of diffusers and what
    it needs, the versions are those of this environment; torch has one for CPUs and a much larger one for CUDA.

    Raises:
        EdgeDiffusionError: an environment cannot be made; then nothing stays.
    """
    wanted: dict[str, list[str]] = {
        "empty": [],
        "edgediffusion": [f"{source}[cpu]"],
        "diffusers": _like_here(DIFFUSERS),
    }
    figures = []
    folder.mkdir()
    try:
        for name, requirements in wanted.items():
            report(f"installing {' '.join(requirements) or 'an empty environment'} in {folder / name}")
            packages = _install(folder / name, requirements)
            size = disk_usage(packages) / 1e6
            if not requirements:
                empty = size
                continue
            versions = _installed(folder / name)
            shown = ", ".join(f"{key} {versions[key]}" for key in NAMED if key in versions)
            cuda = ", CUDA among it" if any(key.startswith("nvidia-") for key in versions) else ""
            figures.append(
                Figure(name=f"on disk: {shown}, and what they need{cuda}", unit="MB", values=(size - empty,))
            )
    except BaseException:
        shutil.rmtree(folder)
        raise
    return figures


def _like_here(names: Iterable[str]) -> list[str]:
    here = installed_versions(names)
    return [f"{name}=={here[name]}" if name in here else name for name in names]


def _install(environment: Path, requirements: Sequence[str]) -> Path:
    """Make a virtual environment and return its site-packages."""
    execute([sys.executable, "-m", "venv", str(environment)], environment.parent)
    python = str(environment / "bin" / "python")
    if requirements:
        execute([python, "-m", "pip", "install", "--quiet", *requirements], environment.parent)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(execute([python, "-c", where], environment.parent).output.strip())


def _installed(environment: Path) -> dict[str, str]:
    listing = execute([str(environment / "bin" / "python"), "-m", "pip", "list", "--format=json"], environment).output
    return {package["name"]: package["version"] for package in json.loads(listing)}


def disk_usage(folder: Path) -> int:
    """Bytes that `folder` and everything in it occupy, as `du` counts them: whole blocks, hard links once."""
    states = [path.lstat() for path in (folder, *folder.rglob("*"))]
    return sum({(state.st_dev, state.st_ino): state.st_blocks * 512 for state in states}.values())
