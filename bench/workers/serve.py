"""The far side of `contenders.Worker`: runs one contender for as long as stdin is open. CONTENDER.py

It imports the standard library and NumPy, and the file of the contender what that one needs, so that both run in any
environment. A line of JSON comes in for each request and one goes out; what a library prints goes to stderr.

The contender's file has `load(request) -> calls`: by its name, a function from feeds (name -> array) and parameters to
a function without arguments, which does the work once and returns its outputs, name -> array. And it has `versions()`,
by the name of the library.
"""

import functools
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Calls = Mapping[str, Callable[..., Callable[[], Mapping[str, Any]]]]


class Session:
    """What has been asked so far. A public method is a request: from the JSON's fields to what is answered."""

    def __init__(self, contender: Callable[[], Any]) -> None:
        self._contender = contender
        self._calls: Calls = {}
        self._call: Callable[[], Mapping[str, Any]] = dict
        self._outputs: Mapping[str, Any] = {}

    def load(self, **request: Any) -> dict[str, Any]:
        """Open the model; the seconds include the imports."""
        started = time.perf_counter()
        contender = self._contender()
        self._calls = contender.load(request)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "calls": sorted(self._calls), "versions": contender.versions()}

    def prepare(self, *, call: str, feeds: str | None, parameters: dict[str, Any]) -> dict[str, Any]:
        """Get ready to run `call` with the arrays in the file `feeds`: what is not to be measured."""
        arrays: dict[str, Any] = {}
        if feeds is not None:
            with np.load(feeds) as opened:
                arrays = dict(opened)
        self._call = self._calls[call](arrays, **parameters)
        return {}

    def run(self, *, times: int) -> dict[str, Any]:
        """Do it so many times."""
        seconds = []
        for _ in range(times):
            started = time.perf_counter()
            self._outputs = self._call()
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def save(self, *, path: str) -> dict[str, Any]:
        """Write the outputs of the last call."""
        np.savez(path, **self._outputs)
        return {}

    def memory(self) -> dict[str, Any]:
        """The most that was resident since the process began, where the system says so."""
        status = Path("/proc/self/status").read_text()
        return {"peak_bytes": 1024 * int(status.partition("VmHWM:")[2].split()[0])}


def serve(session: Session, requests: Any, answers: Any) -> None:
    """Answer each line of `requests`; what goes wrong is an answer, too."""
    for line in requests:
        request = json.loads(line)
        try:
            answer = getattr(session, request.pop("do"))(**request)
        except Exception as error:
            lines = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {lines[0] if lines else 'it says nothing'}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def import_file(path: str) -> Any:
    """The module in the file `path`."""
    specification = importlib.util.spec_from_file_location("contender", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


if __name__ == "__main__":
    del sys.path[0]  # this folder, whose files are named like the libraries they measure
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(Session(functools.partial(import_file, sys.argv[1])), sys.stdin, answers)
