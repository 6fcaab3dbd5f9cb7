"""One benchmark under way: who takes part, with what, and what has been measured so far."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgediffusion.engines.errors import EdgeDiffusionError
from edgediffusion.engines.spec import Array
from edgediffusion.runtime.golden import relative_errors
from edgediffusion.runtime.manifest import Manifest

from .contenders import Contender, Worker
from .schema import OURS, Measurement, Parameters, Span
from .stats import warm_up

PROMPT, SEED = "a red apple", 0
# Calls of one contender go on for about this long before it is the next one's turn: what a round's ratio compares
# then lies close together, and the caches are each contender's own.
_TURN_SECONDS = 0.3
_MOST_CALLS = 20


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured with. `latent` is the model's own size in latents, `factor` the pixels of one.

    `batches` are the numbers of pictures that are drawn at once. At a `guidance_scale` of 1 or less there is none.
    `reference` is a bundle in float32 that pictures are compared with where diffusers isn't installed.
    """

    rounds: int
    steps: int
    guidance_scale: float
    batches: tuple[int, ...]
    latent: int
    factor: int
    backend: str
    device: str
    reference: Path

    @property
    def branches(self) -> int:
        """Rows that the UNet sees for one picture."""
        return 2 if self.guidance_scale > 1 else 1


@dataclass(kw_only=True)
class Session:
    """See the module. The processes of `contenders` start when they are needed, and stay until `close`."""

    bundle: Path
    manifest: Manifest
    settings: Settings
    contenders: list[Contender]
    folder: Path
    report: Callable[[str], None]
    measurements: list[Measurement] = field(default_factory=list)
    timeline: list[Span] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    _workers: dict[str, tuple[Worker, list[str]]] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def skip(self, line: str) -> None:
        """Say once that something is not measured, and keep the line."""
        if line not in self.skipped:
            self.report(line)
            self.skipped.append(line)

    def record(
        self, case: str, contender: str, unit: str, rounds: Sequence[tuple[float, ...]], parameters: Parameters
    ) -> None:
        """Keep a measurement."""
        self.measurements.append(
            Measurement(case=case, contender=contender, unit=unit, rounds=tuple(rounds), parameters=dict(parameters))
        )

    def workers(self, call: str) -> Iterator[Worker]:
        """Those of the contenders that have `call`, loaded; ours is the first."""
        for contender in list(self.contenders):
            with self.or_skip(contender.name):
                worker, calls = self._loaded(contender)
                if call in calls:
                    yield worker
                else:
                    self.skip(f"{contender.name}: has no {call}")

    @contextlib.contextmanager
    def or_skip(self, name: str) -> Iterator[None]:
        """When a peer fails it takes part no longer, with a line that says why; when we fail, that is the end."""
        try:
            yield
        except EdgeDiffusionError as error:
            if name == OURS:
                raise
            self.skip(f"{error}; skipped from here on")
            self.contenders = [contender for contender in self.contenders if contender.name != name]

    def ours(self) -> Worker:
        """Our worker, loaded."""
        return self._loaded(self.contenders[0])[0]

    def _loaded(self, contender: Contender) -> tuple[Worker, list[str]]:
        if contender.name not in self._workers:
            worker = self._stack.enter_context(contender.start())
            answer = worker.ask("load", **contender.request)
            self.versions[contender.name] = answer["versions"]
            self._workers[contender.name] = worker, answer["calls"]
        return self._workers[contender.name]

    def in_turn(
        self, case: str, call: str, parameters: Parameters, feeds: dict[str, Any] | None = None, **told: Any
    ) -> None:
        """Time `call` of every contender that has it, A B A B, on the same `feeds` or with the settings `told`.

        How far each one's outputs are from ours goes into the case "agreement": else the times compare nothing.
        """
        path = None
        if feeds is not None:
            path = str(self.folder / "feeds.npz")
            np.savez(path, **feeds)
        shown = ", ".join(f"{name} {value}" for name, value in parameters.items())
        self.report(f"{case}: {shown}")
        turns: list[tuple[Worker, int]] = []
        for worker in self.workers(call):
            with self.or_skip(worker.name):
                worker.ask("prepare", call=call, feeds=path, parameters=told)
                turns.append((worker, _calls(warm_up(partial(_once, worker))[-1])))
        rounds: dict[str, list[tuple[float, ...]]] = {worker.name: [] for worker, _ in turns}
        for _ in range(self.settings.rounds):
            for worker, calls in turns:
                if self.takes_part(worker.name):
                    with self.or_skip(worker.name):
                        rounds[worker.name].append(worker.run(calls))
        workers = [worker for worker, _ in turns if self.takes_part(worker.name)]
        self._compare(case, workers, parameters)
        for worker in workers:
            self.record(case, worker.name, "s", rounds[worker.name], parameters)

    def takes_part(self, name: str) -> bool:
        """Whether that contender has not failed."""
        return any(contender.name == name for contender in self.contenders)

    def _compare(self, case: str, workers: list[Worker], parameters: Parameters) -> None:
        """Ours is the first of `workers`."""
        ours = saved(workers[0], self.folder / "outputs.npz")
        for worker in workers[1:]:
            with self.or_skip(worker.name):
                outputs = saved(worker, self.folder / "outputs.npz")
                common = {name: array for name, array in outputs.items() if name in ours}
                error = max(relative_errors(ours, common).values())
                self.record("agreement", worker.name, "relative", [(error,)], {"of": case, **parameters})


def saved(worker: Worker, path: Path) -> dict[str, Array]:
    """The outputs of the last call."""
    worker.ask("save", path=str(path))
    with np.load(path) as opened:
        return dict(opened)


def _once(worker: Worker) -> float:
    return worker.run(1)[0]


def _calls(seconds: float) -> int:
    return max(1, min(_MOST_CALLS, round(_TURN_SECONDS / max(seconds, 1e-6))))


def picture_settings(session: Session, *, steps: int | None = None, batch: int = 1) -> dict[str, Any]:
    """What every contender is told of a picture: the same prompt, seed, guidance and number of steps."""
    size = session.settings.latent * session.settings.factor
    return {
        "prompt": PROMPT,
        "seed": SEED,
        "guidance_scale": session.settings.guidance_scale,
        "steps": session.settings.steps if steps is None else steps,
        "batch": batch,
        "height": size,
        "width": size,
    }
