"""What a picture takes in energy, where the GPU counts it."""

from __future__ import annotations

from ..gpu import joules
from ..session import Session, picture_settings

_LEAST_SECONDS = 3.0  # the counter goes up about every 0.1 s


def energy(session: Session) -> None:
    """Of the whole GPU, idle power included, for one picture of several in a row."""
    if joules() is None:
        session.skip("energy: skipped, no GPU here that counts it (pynvml)")
        return
    told = picture_settings(session)
    for worker in session.workers("picture"):
        worker.ask("prepare", call="picture", feeds=None, parameters=told)
        times = max(1, round(_LEAST_SECONDS / worker.run(2)[-1]))
        rounds = []
        for _ in range(session.settings.rounds):
            before = joules() or 0.0
            worker.run(times)
            rounds.append((((joules() or 0.0) - before) / times,))
        session.record("energy", worker.name, "J", rounds, {"steps": told["steps"]})
