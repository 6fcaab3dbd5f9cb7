"""Works through jobs, one at a time, so that each is done at least once whatever happens in between.

    journal: started -> pictures, each by rename, on the disk -> journal: done

A power cut between two of these costs at most the picture in flight: what is there already is found by its parameters
and not drawn again. An attempt that has no end in the journal is one that the process did not survive; it counts, so
that a job which kills the process is given up after as many attempts as one that fails in words.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgediffusion.engines.errors import EdgeDiffusionError, RunCancelled, UsageError, one_line
from edgediffusion.engines.files import sync

from .arguments import print_line
from .jobs import JSON_LINES, Order, parse_line, plan_job, read_texts, run_job
from .journal import DONE, FAILED, RETRY, RETURNED, STARTED, Job, Journal
from .logs import log
from .monitor import Monitor
from .output import CannotWrite
from .timings import measured

if TYPE_CHECKING:
    from .loop import Step
    from .pipeline import Pipeline
    from .run import Run

STUCK = 75  # exit status, EX_TEMPFAIL of sysexits.h: start it again
ENDINGS = {*JSON_LINES, ".txt"}


class Stop:
    """Asked for by a signal: the run at hand is cancelled, and no other begins.

    No `threading.Event`: a handler that interrupts whoever holds its lock would wait for good.
    """

    def __init__(self) -> None:
        self.asked = False
        self._run: Run | None = None

    def ask(self) -> None:
        """From the handler of a signal, which another one may interrupt."""
        if self.asked:
            return
        self.asked = True
        if self._run is not None:
            self._run.cancel()

    @contextmanager
    def cancelling(self, run: Run) -> Iterator[None]:
        """A block in which `run` is what is cancelled."""
        self._run = run
        if self.asked:
            run.cancel()
        try:
            yield
        finally:
            self._run = None


class Source:
    """A file of jobs, or a folder of such files. A folder that is watched may be added to, and a file in it too."""

    def __init__(self, path: Path, *, watched: bool) -> None:
        """Look at it.

        Raises:
            UsageError: there is no such file or folder.
        """
        if not path.exists() or (watched and not path.is_dir()):
            raise UsageError(f"{path}: there is no such {'folder to watch' if watched else 'file or folder'}")
        self._path = path
        self._watched = watched
        self._seen: dict[Path, tuple[int, int]] = {}  # size and time, as they were at the last look
        self._jobs: dict[Path, list[Job]] = {}
        self.unreadable: set[Path] = set()

    def jobs(self) -> Iterator[Job]:
        """All of them, by file and line. In a watched folder a file counts when it is as it was at the last look."""
        paths = [self._path]
        if self._path.is_dir():
            paths = sorted(p for p in self._path.iterdir() if p.suffix.lower() in ENDINGS and p.name[0] != ".")
        for path in paths:
            try:
                stat = path.stat()
                now = stat.st_size, stat.st_mtime_ns
                before, self._seen[path] = self._seen.get(path), now
                if self._watched and now != before:
                    self._jobs.pop(path, None)
                    self.unreadable.discard(path)
                elif path not in self._jobs:
                    self._jobs[path] = [Job(path, number, text) for number, text in read_texts(path).items()]
            except (OSError, UsageError) as error:
                self._jobs[path] = []
                if path not in self.unreadable:
                    self.unreadable.add(path)
                    log(logging.ERROR, "a file of jobs cannot be read", file=str(path), reason=one_line(error))
            yield from self._jobs.get(path, ())


@dataclass(frozen=True, kw_only=True)
class Worker:
    """Draws into the folder `out`. `timeout` is in seconds, for an attempt; `retries` are attempts after the first."""

    pipeline: Pipeline
    out: Path
    journal: Journal
    monitor: Monitor
    stop: Stop
    timeout: float | None
    retries: int

    def work(self, jobs: Iterable[Job]) -> bool:
        """An attempt at each of those that are not over; whether there was one. Ends early when it is stopped.

        Raises:
            UsageError: the journal, or a picture, cannot be written: no job could be done then.
            BrokenPipeError: nobody reads the names of the pictures any more.
        """
        pending = [job for job in jobs if not self.journal.is_over(job)]
        for k, job in enumerate(pending):
            if self.stop.asked:
                break
            self.monitor.is_now("drawing", job, len(pending) - k - 1)
            self._attempt(job)
        return bool(pending)

    def _attempt(self, job: Job) -> None:
        begin = time.monotonic()
        if self.journal.attempts(job) > self.retries:
            reason = f"the process ended while it was drawn, {self.retries + 1} times"
            self._ended(job, FAILED, begin, reason=reason)
            return
        self.journal.write(STARTED, job)
        try:
            self._draw(self._order(job))
        except RunCancelled as error:
            if self.stop.asked:
                self._ended(job, RETURNED, begin)
            else:
                self._failed(job, begin, error, f"timeout of {self.timeout:g} s ({error})")
        except (CannotWrite, BrokenPipeError) as error:
            self._ended(job, RETURNED, begin, error)
            raise
        except UsageError as error:  # it would be the same the next time
            self._ended(job, FAILED, begin, error)
        except Exception as error:
            if not isinstance(error, EdgeDiffusionError | MemoryError | OSError):
                log(logging.ERROR, "unexpected error", exc_info=True, job=job.place)
            self._failed(job, begin, error)
        except BaseException:
            self._ended(job, RETURNED, begin)
            raise
        else:
            self._ended(job, DONE, begin)

    def _order(self, job: Job) -> Order:
        line = {job.line: parse_line(job.path, job.line, job.text)}
        output = self.out / f"{job.path.stem}.png"
        (order,) = plan_job(self.pipeline, line, {"batch_size": "auto"}, job.path, output)
        return order

    def _draw(self, order: Order) -> None:
        with self.stop.cancelling(order.run), deadline(self.timeout, order.run):
            for path, drawn in run_job([order], self._steps, force=False):
                if drawn:
                    self.monitor.picture()
                    print_line(str(path))
        sync(self.out)

    def _steps(self, run: Run) -> Iterator[Step]:
        begin = time.monotonic()
        for step in measured(run):
            self.monitor.step(time.monotonic() - begin)
            yield step
            begin = time.monotonic()

    def _failed(self, job: Job, begin: float, error: BaseException, reason: str = "") -> None:
        again = self.journal.attempts(job) <= self.retries
        self._ended(job, RETRY if again else FAILED, begin, error, reason)

    def _ended(self, job: Job, state: str, begin: float, error: BaseException | None = None, reason: str = "") -> None:
        """`reason` is said where it is not the error's own."""
        seconds = time.monotonic() - begin
        if error is not None and not reason:
            reason = one_line(error) or type(error).__name__
        self.journal.write(state, job, seconds=round(seconds, 3), **({"reason": reason} if reason else {}))
        self.monitor.ended(job, state, seconds, error, reason)


@contextmanager
def deadline(seconds: float | None, run: Run) -> Iterator[None]:
    """Cancel `run` after so long, between two of its steps.

    Where a step does not come back for as long again, as when a driver hangs, the process is ended: whoever watches
    over it starts it again.
    """
    if seconds is None:
        yield
        return
    timers = [threading.Timer(seconds, run.cancel), threading.Timer(2 * seconds, _give_up, (seconds,))]
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _give_up(seconds: float) -> None:
    log(logging.CRITICAL, "a step does not come back; ending the process", timeout=seconds, status=STUCK)
    os._exit(STUCK)
