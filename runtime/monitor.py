"""What `edgediffusion run` tells those who watch it: logs, a status file, metrics for Prometheus."""

from __future__ import annotations

import json
import logging
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edgediffusion.engines.errors import BackendUnavailable, UsageError
from edgediffusion.engines.files import replacing

from .journal import DONE, FAILED, RETRY, Job
from .logs import log
from .memory import free_memory, resident_memory

# Upper ends of the histograms' buckets: a step on a GPU to one of a large model on a small CPU, and pictures.
STEP_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
JOB_SECONDS = (0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 900)
_LEVELS = {RETRY: logging.WARNING, FAILED: logging.ERROR}


class Metrics:
    """A file in Prometheus' text format, such as node_exporter's textfile collector reads; written by rename."""

    def __init__(self, path: Path) -> None:
        """Begin with zeros.

        Raises:
            BackendUnavailable: prometheus-client is not installed.
        """
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ModuleNotFoundError:
            raise BackendUnavailable(
                "--metrics needs prometheus-client", "pip install 'edgediffusion[metrics]'"
            ) from None
        self._path = path
        self._registry = CollectorRegistry()
        to: Any = {"namespace": "edgediffusion", "registry": self._registry}
        self.jobs = Counter("jobs", "Attempts at jobs by how they ended", ["state"], **to)
        self.errors = Counter("errors", "Attempts that failed, by kind of error", ["kind"], **to)
        self.pictures = Counter("pictures", "Pictures written", **to)
        self.job_seconds = Histogram("job_seconds", "Time of an attempt", buckets=JOB_SECONDS, **to)
        self.step_seconds = Histogram("step_seconds", "Time of a denoising step", buckets=STEP_SECONDS, **to)
        self.queue = Gauge("queue_jobs", "Jobs that are waiting", **to)
        self.memory = Gauge("resident_memory_bytes", "Memory of the process", **to)
        self.free = Gauge("free_memory_bytes", "Memory that it could have besides", **to)
        for state in (DONE, RETRY, FAILED):
            self.jobs.labels(state)

    def write(self) -> None:
        """Replace the file.

        Raises:
            OSError: that is not possible.
        """
        from prometheus_client import write_to_textfile

        if (free := free_memory()) is not None:
            self.memory.set(resident_memory())
            self.free.set(free)
        write_to_textfile(str(self._path), self._registry)


class Monitor:
    """Is told what happens, and tells it on."""

    def __init__(self, source: Path, status: Path | None, metrics: Path | None) -> None:
        self._status = status
        self._metrics = None if metrics is None else Metrics(metrics)
        self._since = time.monotonic()
        self._facts: dict[str, Any] = {"source": str(source), "job": None, "queue": 0, "last_error": None}
        self._counts = dict.fromkeys((DONE, RETRY, FAILED, "pictures"), 0)

    def is_now(self, state: str, job: Job | None = None, queue: int = 0) -> None:
        """`state` is what it does: loading, drawing `job`, waiting, stopped."""
        self._facts |= {"state": state, "job": None if job is None else job.place, "queue": queue}
        if job is None:
            log(logging.INFO, state)
        self._write()

    def step(self, seconds: float) -> None:
        """One of the loop's."""
        if self._metrics is not None:
            self._metrics.step_seconds.observe(seconds)

    def picture(self) -> None:
        """One was written."""
        self._counts["pictures"] += 1
        if self._metrics is not None:
            self._metrics.pictures.inc()

    def ended(self, job: Job, state: str, seconds: float, error: BaseException | None = None, reason: str = "") -> None:
        """An attempt at `job` is over."""
        log(_LEVELS.get(state, logging.INFO), state, job=job.place, seconds=round(seconds, 3), reason=reason or None)
        if reason:
            self._facts["last_error"] = {"job": job.place, "reason": reason}
        if state in self._counts:
            self._counts[state] += 1
            if self._metrics is not None:
                self._metrics.jobs.labels(state).inc()
                self._metrics.job_seconds.observe(seconds)
                if error is not None:
                    self._metrics.errors.labels(type(error).__name__).inc()

    def _write(self) -> None:
        """A file that cannot be written is a line of the log: nobody's picture is worth less for that."""
        try:
            if self._status is not None:
                with replacing(self._status) as partial:
                    partial.write_text(
                        json.dumps(self._record(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
                    )
            if self._metrics is not None:
                self._metrics.queue.set(self._facts["queue"])
                self._metrics.write()
        except OSError as error:
            log(logging.WARNING, "status or metrics cannot be written", reason=str(error))

    def _record(self) -> dict[str, Any]:
        return {
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "pid": os.getpid(),
            "seconds": round(time.monotonic() - self._since, 1),
            **self._facts,
            **self._counts,
            "resident_memory": None if free_memory() is None else resident_memory(),
        }


def check_folder_of(option: str, path: Path | None) -> None:
    """Refuse a file that could never be written.

    Raises:
        UsageError: its folder does not exist.
    """
    if path is not None and not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}; make it first")
