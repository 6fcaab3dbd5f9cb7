"""What the model takes on disk."""

from __future__ import annotations

from pathlib import Path

from ..footprint import disk_usage
from ..session import Session


def disk(session: Session) -> None:
    """The folder that each contender opens. What is installed beside it: `edgediffusion bench footprint`."""
    for contender in session.contenders:
        session.record("disk", contender.name, "bytes", [(disk_usage(Path(contender.request["source"])),)], {})
