"""The command line, as a process, and processes that are killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "import sys; from edgediffusion.runtime.cli import main; sys.exit(main())"]


def kill(moment: float, program: str, *arguments: str | Path) -> bool:
    """Kill `program` so many seconds after it has said that it is ready and was told to go on; was it still at work?

    Nobody reads what it says after that, so it should say little.
    """
    command = [sys.executable, "-c", program, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.write(b"\n")
        process.stdin.flush()
        time.sleep(moment)
        process.kill()
    return process.returncode != 0
