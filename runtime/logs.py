"""Logs through the standard library: a line for each event, for people or as JSON."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, TextIO

from .tables import printable

LOGGER = logging.getLogger("edgediffusion")


def log(level: int, event: str, *, exc_info: bool = False, **facts: Any) -> None:
    """Tell of `event`, with facts that have names; those that are None are left out."""
    known = {name: value for name, value in facts.items() if value is not None}
    LOGGER.log(level, "%s", event, exc_info=exc_info, extra={"facts": known})


class Lines(logging.Formatter):
    """A record as one line: as JSON with the keys `at`, `level`, `event` and its facts, or as words."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        at = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        facts: dict[str, Any] = dict(getattr(record, "facts", {}))
        if record.exc_info and self._as_json:
            facts["traceback"] = self.formatException(record.exc_info)
        level, event = record.levelname.lower(), record.getMessage()
        if self._as_json:
            return json.dumps({"at": at, "level": level, "event": event} | facts, ensure_ascii=False, default=str)
        words = " ".join(
            f"{name}={json.dumps(value, ensure_ascii=False, default=str)}" for name, value in facts.items()
        )
        return " ".join(printable(f"{at} {level} {event} {words}").split())


@contextmanager
def logging_to(stream: TextIO, *, as_json: bool) -> Iterator[None]:
    """Where what is logged in this block goes, warnings among it."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Lines(as_json=as_json))
    level, propagate = LOGGER.level, LOGGER.propagate
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest, **more: log(logging.WARNING, str(message))
            yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate
