"""What fewer steps, or another precision, cost in the picture."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import sys

import numpy as np

from edgediffusion.engines.errors import EdgeDiffusionError
from edgediffusion.engines.spec import Array

from ..contenders import Contender, Worker
from ..schema import EQUAL, OURS
from ..session import PROMPT, Session, picture_settings, saved
from ..workers import PEERS
from .growth import STEPS

_PICTURE = "picture.npz"


def quality(session: Session) -> None:
    """PSNR of each contender's picture against float32's: at as many steps, and at the most steps. And CLIP's score.

    The reference is diffusers in float32, or ours over the bundle `settings.reference`.
    """
    reference = _reference(session)
    session.report(f"quality: the reference is {reference.name} in float32")
    with reference.start() as worker:
        worker.ask("load", **reference.request)
        wanted = {steps: _drawn(session, worker, steps) for steps in STEPS}
    for worker in session.workers("picture"):
        for steps in STEPS:
            drawn = _drawn(session, worker, steps)
            _score(session, worker.name, steps)
            for against in {steps, STEPS[-1]}:
                decibels = psnr(drawn, wanted[against])
                session.record("quality", worker.name, "dB", [(decibels,)], {"steps": steps, "against": against})


def _reference(session: Session) -> Contender:
    ours = session.contenders[0]
    peer = PEERS["diffusers"]
    checkpoint = session.folder / "checkpoint"
    if checkpoint.exists() and all(importlib.util.find_spec(name) is not None for name in peer.needs):
        request = {**ours.request, "dtype": "float32", "source": str(checkpoint)}
        return Contender(name="diffusers", python=sys.executable, worker=peer.worker, request=request)
    return dataclasses.replace(ours, name=OURS, request={**ours.request, "source": str(session.settings.reference)})


def _score(session: Session, name: str, steps: int) -> None:
    """How well the picture that was drawn last fits its prompt, by the bundle's own image encoder."""
    worker, path = session.ours(), session.folder / "scores.npz"
    try:
        parameters = {"prompt": PROMPT}
        worker.ask("prepare", call="clip_score", feeds=str(session.folder / _PICTURE), parameters=parameters)
        worker.run(1)
    except EdgeDiffusionError as error:
        session.skip(f"CLIP score: skipped, {error}")
        return
    session.record("clip-score", name, "", [tuple(map(float, saved(worker, path)["scores"]))], {"steps": steps})


def _drawn(session: Session, worker: Worker, steps: int) -> Array:
    worker.ask("prepare", call="picture", feeds=None, parameters=picture_settings(session, steps=steps))
    worker.run(1)
    return saved(worker, session.folder / _PICTURE)["images"]


def psnr(a: Array, b: Array) -> float:
    """In dB, of pictures in 0 to 255; at most 120, which stands for equal ones."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return EQUAL if error == 0 else min(EQUAL, 10 * math.log10(255**2 / error))
