"""Whole generations in warm processes: one picture, several at once, and what the loop adds to the engines."""

from __future__ import annotations

import itertools

from ..schema import OURS, Span
from ..session import Session, picture_settings, saved


def picture(session: Session) -> None:
    """From the prompt to pixels."""
    told = picture_settings(session)
    session.in_turn("picture", "picture", {"steps": told["steps"], "batch": 1}, **told)


def throughput(session: Session) -> None:
    """Several pictures at once; pictures a second are the batch through the time."""
    if session.manifest.static is not None:
        session.skip("throughput: skipped, the graphs of this bundle are for one batch only")
        return
    for batch in session.settings.batches:
        told = picture_settings(session, batch=batch)
        session.in_turn("throughput", "picture", {"steps": told["steps"], "batch": batch}, **told)


def loop(session: Session) -> None:
    """Between one call of the UNet and the next: sampler, guidance, copies. And the time line of the last run."""
    told, worker, rounds = picture_settings(session), session.ours(), []
    worker.ask("prepare", call="timeline", feeds=None, parameters=told)
    worker.run(1)
    for _ in range(session.settings.rounds):
        worker.run(1)
        noted = saved(worker, session.folder / "timeline.npz")
        spans = [
            Span(name=str(name), start=float(start), end=float(end))
            for name, start, end in zip(noted["names"], noted["starts"], noted["ends"], strict=True)
        ]
        steps = [span for span in spans if span.name == "unet"]
        rounds.append(tuple(later.start - earlier.end for earlier, later in itertools.pairwise(steps)))
    if all(rounds):
        session.record("loop", OURS, "s", rounds, {"steps": told["steps"]})
    session.timeline[:] = spans
