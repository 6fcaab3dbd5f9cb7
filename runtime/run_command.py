"""The commands `run` and `warm`: for machines that nobody sits at."""

from __future__ import annotations

import argparse
import logging
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from edgediffusion.engines.errors import UsageError

from .arguments import Parser, add_low_memory, add_model, opening, print_line
from .journal import Journal
from .logs import log, logging_to
from .memory import limit_memory
from .monitor import Monitor, check_folder_of
from .output import UNFINISHED
from .pipeline import Pipeline
from .worker import Source, Stop, Worker

JOURNAL, LOCK = "journal.jsonl", ".edgediffusion.lock"
LOOK = 1.0  # seconds between two looks at a watched folder


def run(arguments: Sequence[str]) -> int:
    """See `cli.run`."""
    options = _options(arguments)
    check_folder_of("--status", options.status)
    check_folder_of("--metrics", options.metrics)
    source = Source(options.source, watched=options.watch)
    stop = Stop()
    with ExitStack() as stack:
        stack.enter_context(logging_to(sys.stderr, as_json=options.log_json))
        stack.enter_context(_alone(options.output))
        stack.enter_context(_asked_by_sigterm(stop))
        journal = Journal(options.output / JOURNAL)
        stack.callback(journal.close)
        monitor = Monitor(options.source, options.status, options.metrics)
        stack.callback(monitor.is_now, "stopped")
        monitor.is_now("loading")
        if options.max_memory is not None:
            limit_memory(options.max_memory)
        pipeline = stack.enter_context(Pipeline.load(**opening(options), low_memory=options.low_memory))
        pipeline.bundle.verify()  # before a job is begun
        worker = Worker(
            pipeline=pipeline,
            out=options.output,
            journal=journal,
            monitor=monitor,
            stop=stop,
            timeout=options.timeout,
            retries=options.retries,
        )
        idle = False
        while not stop.asked:
            if worker.work(source.jobs()):
                idle = False
            elif not options.watch:
                break
            elif not idle:
                monitor.is_now("waiting")
                idle = True
            if options.watch:
                time.sleep(LOOK)
        failed = source.unreadable or any(map(journal.has_failed, source.jobs()))
    return 1 if failed and not options.watch else 0


def warm(arguments: Sequence[str]) -> int:
    """See `cli.warm`."""
    parser = Parser("warm", "Build what engines are lacking, read the weights, draw one step: the next start is fast.")
    add = parser.add_argument
    add("--num-images", type=int, default=1, metavar="N", help="at once; default: %(default)s")
    add_model(parser)
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    with Pipeline.load(**opening(options)) as pipeline:
        opened = time.monotonic() - begin
        pipeline("", num_inference_steps=1, num_images=options.num_images, seed=0)
        print_line(f"opened in {opened:.1f} s, first step and picture in {time.monotonic() - begin - opened:.1f} s")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "run", "Work through a file or folder of jobs; what a power cut interrupts is done at the next start."
    )
    add = parser.add_argument
    add(
        "source",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="a prompt a line, or JSON lines (.jsonl) of any settings, or a folder of such files",
    )
    add("-o", "--output", type=Path, default=Path(), metavar="FOLDER", help="for pictures and journal; default: here")
    add("--watch", action="store_true", help="wait for more files in the folder, until SIGTERM")
    add("--timeout", type=_seconds, metavar="SECONDS", help="for an attempt at a job; default: none")
    add("--retries", type=_count, default=2, metavar="N", help="of a job that fails; default: %(default)s")
    add("--max-memory", type=_mebibytes, metavar="MIB", help="that the process may have for itself, on Linux")
    add_low_memory(parser)
    add("--status", type=Path, metavar="FILE", help="JSON that says what it does, replaced whenever that changes")
    add("--metrics", type=Path, metavar="FILE", help="the same in Prometheus' text format (.prom)")
    add("--log-json", action="store_true", help="logs on stderr as JSON lines")
    add_model(parser)
    return parser.parse_args(arguments)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """A block in which no other `run` draws into `out`; what one that was killed had not finished is taken away."""
    import filelock

    if not out.is_dir():
        raise UsageError(f"--output {out}: there is no such folder; make it first")
    lock = filelock.FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UsageError(f"--output {out}: another edgediffusion run is at work there; name another folder") from None
    except OSError as error:
        raise UsageError(f"--output {out}: cannot be written: {error.strerror or error}") from None
    try:
        for left in out.glob(f"{UNFINISHED}*"):
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


@contextmanager
def _asked_by_sigterm(stop: Stop) -> Iterator[None]:
    """A block in which SIGTERM gives the job at hand back and ends the command with status 0."""

    def handler(number: int, frame: object) -> None:
        stop.ask()

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if stop.asked:
            log(logging.INFO, "stopped by SIGTERM")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted a number of seconds above 0")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, wanted 0 or more")
    return int(text)


def _mebibytes(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted a number of MiB")
    return int(text) << 20
