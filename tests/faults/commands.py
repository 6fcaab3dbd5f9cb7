"""The command line, as a process, and processes that are killed."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "from edgediffusion.runtime.cli import script; script()"]


def waiting(imports: str, work: str) -> str:
    """A program that says that it is ready when it has imported what it needs, and works when it is told to go on."""
    return f'import sys\n{imports}\nprint("ready", flush=True)\nsys.stdin.readline()\n{work}'


def kill(seed: int, seconds: float, program: str, *arguments: str | Path) -> bool:
    """Kill what `waiting` made at a random moment of so many seconds of its work; was it still at work?

    Nobody reads what it says after that, so it should say little.
    """
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"\n")
        process.stdin.flush()
        time.sleep(random.Random(seed).uniform(0, seconds))
        process.kill()
    return process.returncode != 0
