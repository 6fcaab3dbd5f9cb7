"""A function in a process of its own: its memory goes when it ends, and how much it took is known."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from edgediffusion.engines.errors import ExportError
from edgediffusion.runtime.memory import peak_memory

# What a child would spend its first seconds importing. A fork server imports it once, and never runs any of it.
PRELOAD = ["edgediffusion.export.stage", "torch._dynamo", "torch.onnx._internal.exporter._core"]
_GRACE = 10  # seconds for a child that has answered to put its things away


def in_child(what: str, function: Callable[[], object]) -> int | None:
    """Call `function`, which is pickled, in a child process; what it raises is raised here.

    Returns the peak of the child's memory in bytes, None where the system does not tell. The child goes with whatever
    interrupts the wait for it, and with this process.

    Raises:
        ExportError: the child was killed; `what` names its work.
    """
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_call, args=(sender, function), daemon=True)
    with _no_gpus():
        if method == "forkserver":
            _start_server()
        child.start()
    sender.close()
    try:
        error, peak = receiver.recv()
        child.join(_GRACE)
    except EOFError:
        child.join()
        code = child.exitcode or 0
        if code < 0:
            how = f"was killed by signal {-code}, most likely for lack of memory; free some, and export again"
        else:
            how = f'ended with status {code}; a script that exports has to do so under `if __name__ == "__main__":`'
        raise ExportError(f"{what}: its process {how} (with --resume, what is done is kept)") from None
    finally:
        child.kill()
        child.join()
        receiver.close()
    if error is not None:
        raise error
    return int(peak) if peak is not None else None


def _start_server() -> None:
    """Ctrl-C at a terminal reaches every process: the server, which may be importing, does not take it."""
    resource_tracker.ensure_running()  # which the server needs, and which unblocks signals as it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _no_gpus() -> Iterator[None]:
    """Processes that start meanwhile see none: an export computes on the CPU, and CUDA does not bear a fork."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _call(sender: Connection, function: Callable[[], object]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    threading.Thread(target=_follow_parent, daemon=True).start()
    error: BaseException | None = None
    try:
        function()
    except Exception as raised:
        error = raised
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # some libraries' exceptions cannot be
            error = RuntimeError(repr(raised))
    with contextlib.suppress(BrokenPipeError):
        sender.send((error, peak_memory()))


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
