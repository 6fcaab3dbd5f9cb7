"""The near side of `workers.serve`: each contender in a process of its own, which does what it is told."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgediffusion.engines.errors import EdgeDiffusionError, UnknownName, UsageError

from .schema import OURS
from .workers import PEERS

WORKERS = Path(__file__).parent / "workers"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Who runs: `worker` is a file in `workers/`, `request` what its `load` is told."""

    name: str
    python: str
    worker: str
    request: Mapping[str, Any]

    @contextlib.contextmanager
    def start(self) -> Iterator[Worker]:
        """A fresh process that has loaded nothing yet."""
        worker = Worker(self.name, [self.python, str(WORKERS / "serve.py"), str(WORKERS / f"{self.worker}.py")])
        try:
            yield worker
        finally:
            worker.close()


class Worker:
    """A process that answers."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the worker
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}  # nothing is looked up on the network
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=environment
        )

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises:
            EdgeDiffusionError: it failed; the message is the worker's, or the last line that its process wrote.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            reason = (self._errors.read().strip().splitlines() or ["it says nothing"])[-1]
            raise EdgeDiffusionError(f"{self.name}: its process ended with status {status}: {reason}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EdgeDiffusionError(f"{self.name}: {answer['error']}")
        return answer

    def run(self, times: int) -> tuple[float, ...]:
        """Seconds of each of so many calls of what was prepared."""
        return tuple(self.ask("run", times=times)["seconds"])

    def close(self) -> None:
        """End it. May be called twice."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()
        self._errors.close()


def interpreters(told: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """The Python of each peer: as `told`, NAME=PATH, else what EDGEDIFFUSION_NAME says, else this one.

    Raises:
        UsageError, UnknownName: something else was told.
    """
    given = {}
    for text in told:
        name, _, path = text.partition("=")
        if name not in PEERS:
            raise UnknownName("peer", name, PEERS)
        if not Path(path).is_file():
            raise UsageError(f"--python {text}: there is no {path or 'path'}; wanted NAME=PATH of an interpreter")
        given[name] = path
    variables = {name: f"EDGEDIFFUSION_{name.upper().replace('-', '_')}" for name in names}
    return {name: given.get(name) or os.environ.get(variables[name]) or sys.executable for name in names}


def missing(python: str, modules: Sequence[str]) -> list[str]:
    """Those of `modules` that the interpreter `python` cannot find."""
    code = (
        "import importlib.util, sys\n"
        "def found(name):\n"
        "    try: return importlib.util.find_spec(name) is not None\n"
        "    except ImportError: return False\n"
        "print(*(name for name in sys.argv[1:] if not found(name)))"
    )
    done = subprocess.run([python, "-c", code, *modules], capture_output=True, text=True)
    return done.stdout.split() if done.returncode == 0 else list(modules)


def find(
    names: Sequence[str], pythons: Mapping[str, str], request: Mapping[str, Any], sources: Mapping[str, Path]
) -> tuple[list[Contender], list[str]]:
    """Ours and the peers `names` that are installed, and a line for each that isn't.

    `sources` are the folders of the "bundle" and the "checkpoint" that hold the same weights.
    """
    ours = {**request, "source": str(sources["bundle"])}
    contenders = [Contender(name=OURS, python=sys.executable, worker="ours", request=ours)]
    skipped = []
    for name in names:
        peer, python = PEERS[name], pythons[name]
        if lacking := missing(python, peer.needs):
            skipped.append(f"{name}: skipped, {python} has no {', '.join(lacking)}; see --python")
            continue
        theirs = {**request, **peer.options, "source": str(sources[peer.reads])}
        contenders.append(Contender(name=name, python=python, worker=peer.worker, request=theirs))
    return contenders, skipped
