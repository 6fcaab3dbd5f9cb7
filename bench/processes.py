"""Fresh processes, measured from outside."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgediffusion.engines.errors import EdgeDiffusionError, UsageError

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """One process, from just before it was made to its end.

    `started` and `ended` are `time.monotonic()`, which all processes share. `cpu_seconds` are those of all its
    threads, in user and kernel mode. `peak_bytes` is the most memory that was resident (ru_maxrss of wait4, which
    begins at what the process that calls `execute` holds: keep that one small).
    """

    started: float
    ended: float
    cpu_seconds: float
    peak_bytes: int
    output: str

    @property
    def seconds(self) -> float:
        """Wall clock."""
        return self.ended - self.started


def execute(command: Sequence[str], folder: Path) -> Execution:
    """Run `command` in `folder` and wait for its end.

    Raises:
        EdgeDiffusionError: it fails; the message is the last line that it wrote to stderr.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}  # nothing is looked up on the network
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
        )
        _, status, usage = os.wait4(process.pid, 0)
        ended = time.monotonic()
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if process.returncode != 0:
            reason = (errors.read().strip().splitlines() or ["it says nothing"])[-1]
            shown = " ".join(command[:3])
            raise EdgeDiffusionError(f"{shown} ... ended with status {process.returncode}: {reason}")
        return Execution(
            started=started,
            ended=ended,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_bytes=usage.ru_maxrss * 1024,
            output=output.read(),
        )


def in_turn(
    commands: Mapping[str, Sequence[str]], runs: int, folder: Path, report: Report
) -> dict[str, list[Execution]]:
    """Run the commands A B A B ..., each `runs` times, after one of each that does not count: it fills the page cache.

    Raises:
        EdgeDiffusionError: see `execute`.
    """
    executions: dict[str, list[Execution]] = {name: [] for name in commands}
    for run in range(runs + 1):
        report(f"{', '.join(commands)}: {f'run {run} of {runs}' if run else 'warming up'}")
        for name, command in commands.items():
            execution = execute(command, folder)
            if run:
                executions[name].append(execution)
    return executions


@contextlib.contextmanager
def limited_to(cores: int) -> Iterator[None]:
    """Processes that are started in here share `cores` processor cores.

    Raises:
        UsageError: there are fewer, or this is not Linux.
    """
    if sys.platform != "linux":
        raise UsageError(f"bench measures with what Linux offers, and this is {sys.platform}; run it on Linux")
    usable = os.sched_getaffinity(0)
    if cores > len(usable):
        raise UsageError(f"cores {cores}; this machine lets the command use {len(usable)}")
    os.sched_setaffinity(0, sorted(usable)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, usable)
