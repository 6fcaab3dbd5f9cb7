"""What only fresh processes show: the cold start, loading, memory, and the build of engines."""

from __future__ import annotations

import sys

from edgediffusion.engines.registry import BACKENDS

from ..gpu import watch_memory
from ..pictures import COMMAND, OURS, drawing_commands
from ..processes import execute, in_turn
from ..schema import OURS as NAME
from ..session import Session, picture_settings

_BUILDS = 3


def start(session: Session) -> None:
    """From a cold process to the PNG that it writes, beside a script of diffusers' where that is installed."""
    settings = session.settings
    flags = ["--backend", settings.backend, "--device", settings.device]
    commands = drawing_commands(
        session.bundle,
        session.folder,
        session.report,
        steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        device=settings.device,
    )
    commands[OURS] += flags
    executions = in_turn(commands, settings.rounds, session.folder, session.report)
    names = {OURS: NAME}
    for name, found in executions.items():
        rounds = [(execution.seconds,) for execution in found]
        session.record("start", names.get(name, name), "s", rounds, {"steps": settings.steps})


def load(session: Session) -> None:
    """Imports and the opening of the model, in a fresh process each time; the files are in the page cache."""
    rounds: dict[str, list[tuple[float, ...]]] = {}
    for number in range(session.settings.rounds + 1):
        session.report(f"load: {f'round {number} of {session.settings.rounds}' if number else 'warming up'}")
        for contender in list(session.contenders):
            with session.or_skip(contender.name), contender.start() as worker:
                seconds = worker.ask("load", **contender.request)["seconds"]
                if number:
                    rounds.setdefault(contender.name, []).append((seconds,))
    for name, values in rounds.items():
        session.record("load", name, "s", values, {})


def memory(session: Session) -> None:
    """The most that a process holds which loads the model and draws one picture, each contender alone."""
    told = picture_settings(session)
    for contender in list(session.contenders):
        session.report(f"memory: {contender.name}")
        with session.or_skip(contender.name), watch_memory() as device, contender.start() as worker:
            if "picture" not in worker.ask("load", **contender.request)["calls"]:
                session.skip(f"{contender.name}: has no picture")
                continue
            worker.ask("prepare", call="picture", feeds=None, parameters=told)
            worker.run(1)
            host = worker.ask("memory")["peak_bytes"]
            session.record("memory", contender.name, "bytes", [(host,)], {"of": "host"})
        if device:
            session.record("memory", contender.name, "bytes", [tuple(device)], {"of": "device"})


def build(session: Session) -> None:
    """The engines of a backend that builds them, into an empty store."""
    settings = session.settings
    if not BACKENDS[settings.backend].builds:
        session.skip(f"build: skipped, {settings.backend} runs graphs as they are")
        return
    size = f"{settings.latent * settings.factor}x{settings.latent * settings.factor}"
    rounds = []
    for number in range(_BUILDS):
        session.report(f"build: {number + 1} of {_BUILDS}")
        store = f"XDG_CACHE_HOME={session.folder / f'store-{number}'}"
        command = [sys.executable, "-c", COMMAND, "build", str(session.bundle), "--backend", settings.backend]
        rounds.append((execute(["env", store, *command, "--shapes", size], session.folder).seconds,))
    session.record("build", NAME, "s", rounds, {"size": size})
