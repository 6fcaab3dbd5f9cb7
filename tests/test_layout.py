"""What may import what, and what stays unloaded."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgediffusion.runtime

ROOT = Path(__file__).parents[1]
FOLDERS = ("engines", "runtime", "export", "bench")
FORBIDDEN = ("torch", "diffusers", "transformers", "onnx")
HEAVY = ("onnxruntime", "PIL.Image", "tokenizers", "typer", "rich")
MODULES = [
    ".".join(("edgediffusion", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    for folder in ("engines", "runtime")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)


def test_engines_and_runtime_import_without_what_belongs_to_the_export() -> None:
    """`None` in sys.modules makes an import fail even where the package is installed."""
    result = run(
        f"import importlib, sys\nsys.modules.update(dict.fromkeys({FORBIDDEN!r}))\n"
        f"for module in {MODULES!r}:\n    importlib.import_module(module)"
    )
    assert result.returncode == 0, result.stderr


def test_none_in_sys_modules_does_forbid() -> None:
    result = run("import sys\nsys.modules['onnxruntime'] = None\nimport edgediffusion.engines.ort")
    assert "ModuleNotFoundError" in result.stderr


def test_importing_the_runtime_loads_nothing_heavy() -> None:
    result = run(f"import sys, edgediffusion.runtime\nprint([name for name in {HEAVY!r} if name in sys.modules])")
    assert result.stdout == "[]\n", result.stderr


def test_the_package_is_a_command() -> None:
    result = subprocess.run([sys.executable, "-I", "-m", "edgediffusion", "schedulers"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "euler" in result.stdout


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of each import, relative ones with their dots."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or ""
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_are_relative_inside_a_folder_and_absolute_across(folder: str) -> None:
    """mypy takes a module that is imported by two names for two modules."""
    for path in (ROOT / folder).rglob("*.py"):
        depth = len(path.relative_to(ROOT).parts) - 1
        for level, name in imports(path):
            where = f"{path.relative_to(ROOT)}: {'.' * level}{name}"
            assert level <= depth, f"{where} leaves {folder}/; import edgediffusion.* instead"
            assert level or name.split(".")[0] not in FOLDERS, f"{where} is found from the repository root only"
            assert level or not f"{name}.".startswith(f"edgediffusion.{folder}."), f"{where}: make it relative"


def test_the_public_names_are_there_and_sorted() -> None:
    names = edgediffusion.runtime.__all__
    assert names == sorted(names, key=lambda name: (not name.isupper(), name))
    for name in names:
        assert getattr(edgediffusion.runtime, name).__doc__
    assert set(names) == {
        "SCHEDULERS",
        "Bundle",
        "GeneratedImage",
        "ImageConverted",
        "ImageResized",
        "NoiseSource",
        "NumpyNoise",
        "Parameters",
        "Pipeline",
        "PromptTruncated",
        "Run",
        "Scheduler",
        "Step",
        "denoise",
        "draw",
    }
