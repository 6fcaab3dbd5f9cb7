"""Nothing is sent or fetched at run time, and nothing that was read is run."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Sockets of Python's are seen as they are made, those of libraries where there is strace.
PROGRAM = """
import os, sys
def refuse(event, arguments):
    if event.startswith("socket."):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(99)
sys.addaudithook(refuse)
from edgediffusion.runtime.cli import main
status = main(sys.argv[1:])
MORE
sys.exit(status)
"""
CALLS = {"eval", "exec", "system", "popen"}
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "joblib", "socket"}
KEYWORDS = {"shell", "allow_pickle"}
STRACE = shutil.which("strace")


def run(folder: Path, more: str = "") -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """In an empty home; what was done, and the sockets that were made."""
    traced = [STRACE, "-f", "--seccomp-bpf", "-e", "trace=network", "-o", "trace"] if STRACE else []
    command = [*traced, sys.executable, "-c", PROGRAM.replace("MORE", more)]
    command += ["generate", "a red apple", "--num-inference-steps", "1", "-o", "apple.png"]
    environment = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    environment |= {"HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    trace = folder / "trace"
    return done, [line for line in trace.read_text().splitlines() if "socket(" in line] if trace.exists() else []


def test_generate_opens_no_socket_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done, sockets = run(tmp_path)
    assert (done.returncode, done.stdout, done.stderr, sockets) == (0, "apple.png\n", "", [])
    assert {path.name for path in tmp_path.iterdir()} - {"trace"} == {"apple.png"}


@pytest.mark.slow
def test_a_socket_would_be_seen(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "import socket; socket.socket()")
    assert done.returncode == 99
    assert STRACE is None or run(tmp_path, "import ctypes; ctypes.CDLL(None).socket(2, 1, 0)")[1]


def found(tree: ast.AST) -> set[str]:
    """Calls, imports and keywords that would run what was read."""
    nodes = list(ast.walk(tree))
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    called = {call.id for call in calls if isinstance(call, ast.Name)}
    called |= {call.attr for call in calls if isinstance(call, ast.Attribute) and ast.unparse(call.value) == "os"}
    imports = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    keywords = {node.arg for node in nodes if isinstance(node, ast.keyword) and node.arg}
    return called & CALLS | {name.split(".")[0] for name in imports} & MODULES | keywords & KEYWORDS


@pytest.mark.parametrize("code", ["eval('1')", "import pickle", "os.system('ls')", "run('ls', shell=True)"])
def test_what_would_be_found(code: str) -> None:
    assert len(found(ast.parse(code))) == 1


@pytest.mark.parametrize("folder", ["engines", "runtime"])
def test_no_pickle_no_shell_no_eval(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        assert not found(ast.parse(path.read_text(encoding="utf-8"))), path
