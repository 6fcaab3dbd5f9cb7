"""A function in a child process: its memory, its errors, its end."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgediffusion.engines.errors import ExportError, UnknownName
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import GraphSpec
from edgediffusion.export import process
from edgediffusion.export.process import in_child

SPEC = GraphSpec("none", (), ())


@pytest.fixture(autouse=True)
def nothing_preloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PRELOAD", [])


def test_the_peak_is_the_childs() -> None:
    peak = in_child("nothing", functools.partial(bytearray, 1))
    larger = in_child("an array", functools.partial(b"x".__mul__, 300 << 20))
    assert peak is not None
    assert larger is not None
    assert 250 << 20 < larger - peak < 400 << 20


def test_an_error_is_the_same_here() -> None:
    with pytest.raises(UnknownName, match=r"^unknown backend 'abacus'; known: ort"):
        in_child("a component", functools.partial(open_engine, Path(), SPEC, backend="abacus"))


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_child_that_is_killed() -> None:
    with pytest.raises(ExportError, match=r"^unet: its process was killed by signal 9, most likely for lack of memory"):
        in_child("unet", functools.partial(signal.raise_signal, signal.SIGKILL))


def test_a_script_that_every_child_would_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from edgediffusion.export.process import in_child\nin_child('unet', print)\n")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "ExportError: unet: its process ended with status 1; a script that exports has to do so under" in ran.stderr


def test_a_child_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    in_child("nothing", functools.partial(exec, "import os; assert not os.environ['CUDA_VISIBLE_DEVICES']"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


# A command whose child says in the new folder that it is at work, then goes on for a minute.
COMMAND = """
import functools, sys
from pathlib import Path
from edgediffusion.export import process
from edgediffusion.export.staging import staging
from edgediffusion.runtime import cli

def command(arguments):
    process.PRELOAD = arguments[1:]
    with staging(Path(arguments[0]) / "out", keep=False) as folder:
        work = f"import os, time, pathlib; pathlib.Path({str(folder)!r}, str(os.getpid())).touch(); time.sleep(60)"
        process.in_child("unet", functools.partial(exec, work))

cli.COMMANDS["work"] = command
sys.exit(cli.main(["work", *sys.argv[1:]]))
"""


def start(*arguments: str, at_work: Path, pattern: str) -> tuple[subprocess.Popen[str], Path]:
    """`COMMAND` in a process group of its own, and the first file below `at_work` that has the name `pattern`."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (found := list(at_work.rglob(pattern))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process, found[0]


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="has no process groups")
@pytest.mark.parametrize("kill", [os.kill, os.killpg])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, kill: Callable[[int, int], None]) -> None:
    """Whether it reaches the parent alone, or every process, as Ctrl-C at a terminal does."""
    process, child = start(str(tmp_path), at_work=tmp_path, pattern="[0-9]*")
    kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "edgediffusion: interrupted\n")
    assert not list(tmp_path.iterdir())
    assert not is_alive(int(child.name))


@pytest.mark.skipif(sys.platform == "win32", reason="has no process groups")
def test_an_interrupt_while_the_server_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends by itself, and says nothing."""
    (tmp_path / "slow_import.py").write_text("import time, pathlib; pathlib.Path('begun').touch(); time.sleep(1)")
    (tmp_path / "bundles").mkdir()
    monkeypatch.chdir(tmp_path)
    process, _ = start(str(tmp_path / "bundles"), "slow_import", at_work=tmp_path, pattern="begun")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "edgediffusion: interrupted\n")
    assert not list((tmp_path / "bundles").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_child_goes_with_its_parent(tmp_path: Path) -> None:
    process, _ = start(str(tmp_path), at_work=tmp_path, pattern="[0-9]*")
    process.kill()
    process.communicate(timeout=30)  # waits until nobody holds stderr
