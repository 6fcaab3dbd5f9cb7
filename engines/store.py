"""Built engines on the disk. Each lies beside a sidecar that says in words what it is; a mismatch is never loaded.

A plan is written beside its place and renamed, its sidecar after it: what has no sidecar is no engine. A lock that the
system takes back when a process dies keeps two from building the same.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from .errors import BackendUnavailable, EngineError, UsageError
from .files import PARTIAL, replacing, sync
from .json_object import parse_object
from .recipe import Graph, Recipe, Target
from .typed import check_types

PLAN, SIDECAR, LOCK = ".plan", ".json", ".lock"


class NoEngine(BackendUnavailable):
    """No engine was built for this graph on this machine; `remedy` is the command that builds one."""


class DamagedEngine(EngineError):
    """An engine whose files are not what was built."""


@dataclass(frozen=True, kw_only=True)
class Built:
    """The plan as it was written, by whom, and how long it took."""

    bytes: int
    sha256: str
    seconds: float
    at: str
    by: str


@dataclass(frozen=True)
class Entry:
    """One engine of a store."""

    recipe: Recipe
    built: Built
    plan: Path

    @property
    def sidecar(self) -> Path:
        """The file that describes it."""
        return self.plan.with_suffix(SIDECAR)

    def read(self) -> bytes:
        """The plan, all of it.

        Raises:
            DamagedEngine: it is not the one that was built.
        """
        try:
            plan = self.plan.read_bytes()
        except OSError as error:
            raise DamagedEngine(f"{self.plan}: cannot be read ({error.strerror}); {_AGAIN}") from None
        if len(plan) != self.built.bytes:
            kind = "truncated" if len(plan) < self.built.bytes else "altered"
            raise DamagedEngine(f"{self.plan}: {kind}, {len(plan)} bytes, expected {self.built.bytes}; {_AGAIN}")
        if (found := hashlib.sha256(plan).hexdigest()) != self.built.sha256:
            raise DamagedEngine(f"{self.plan}: altered, SHA-256 {found}, expected {self.built.sha256}; {_AGAIN}")
        return plan

    def remove(self) -> None:
        """Delete it, sidecar first."""
        self.sidecar.unlink(missing_ok=True)
        self.plan.unlink(missing_ok=True)


_AGAIN = "build it again; edgediffusion engines prune takes it away"


class Store:
    """Engines in one folder, which need not exist yet."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_user(cls) -> Store:
        """The one in the user's cache directory."""
        import platformdirs

        return cls(platformdirs.user_cache_path("edgediffusion") / "engines")

    def entries(self) -> Iterator[Entry]:
        """What lies here, by name; files that are no sidecars of ours are passed over."""
        for sidecar in sorted(self.folder.glob(f"*{SIDECAR}")):
            try:
                yield read_sidecar(sidecar)
            except DamagedEngine:
                continue

    def leftovers(self) -> list[Path]:
        """What processes that died had not finished writing, and plans without a sidecar.

        Those of a build that is under way are no leftovers for as long as its lock is held.
        """
        import filelock

        found = []
        for path in [*self.folder.glob(f"*{PARTIAL}"), *self.folder.glob(f"*{PLAN}")]:
            name = path.name.split(PARTIAL)[0].removesuffix(PLAN).removesuffix(SIDECAR)
            name = name if path.suffix == PLAN else name.rpartition(".")[0]  # the process's number
            if path.suffix == PLAN and path.with_suffix(SIDECAR).exists():
                continue
            try:
                with filelock.FileLock(self.folder / f"{name}{LOCK}", timeout=0):
                    found.append(path)
            except filelock.Timeout:
                continue
        return found

    def get_or_build(
        self,
        recipe: Recipe,
        build: Callable[[], bytes],
        *,
        by: str,
        on_wait: Callable[[str], None] = lambda name: None,
        stop: threading.Event | None = None,
    ) -> Entry:
        """The engine of this recipe: from here, or made by `build`; one that is damaged is built again.

        While another process builds it this one waits for that, having called `on_wait` with the name.

        Raises:
            EngineError: `stop` was set while it waited; or what `build` raises.
        """
        import filelock

        self.folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self._path(recipe, LOCK))
        waited = False
        while not lock.is_locked:
            try:
                lock.acquire(timeout=0.2 if waited else 0)
            except filelock.Timeout:
                if stop is not None and stop.is_set():
                    raise EngineError(f"{recipe.name}: stopped while another process builds it") from None
                if not waited:
                    on_wait(recipe.name)
                waited = True
        try:
            return self._sound(recipe) or self._build(recipe, build, by)
        finally:
            lock.release()

    def _sound(self, recipe: Recipe) -> Entry | None:
        try:
            entry = read_sidecar(self._path(recipe, SIDECAR))
            entry.read()
        except DamagedEngine:
            return None
        return entry

    def _build(self, recipe: Recipe, build: Callable[[], bytes], by: str) -> Entry:
        for left in self.folder.glob(f"{recipe.name}.*{PARTIAL}"):  # by one that was killed: the lock is ours
            left.unlink()
        start = time.monotonic()
        plan = build()
        built = Built(
            bytes=len(plan),
            sha256=hashlib.sha256(plan).hexdigest(),
            seconds=round(time.monotonic() - start, 1),
            at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            by=by,
        )
        return self.add(recipe, built, plan)

    def add(self, recipe: Recipe, built: Built, plan: bytes) -> Entry:
        """Write an engine and its sidecar here.

        Raises:
            UsageError: they cannot be written; there is no such engine then.
        """
        entry = Entry(recipe, built, self._path(recipe, PLAN))
        self.folder.mkdir(parents=True, exist_ok=True)
        entry.sidecar.unlink(missing_ok=True)
        _write(entry.plan, plan)
        record = {"recipe": recipe.to_record(), "plan": asdict(built)}
        _write(entry.sidecar, (json.dumps(record, indent=2) + "\n").encode())
        return entry

    def _path(self, recipe: Recipe, suffix: str) -> Path:
        return self.folder / f"{recipe.name}{suffix}"


def _write(path: Path, content: bytes) -> None:
    try:
        with replacing(path) as partial:
            partial.write_bytes(content)
            sync(partial)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_sidecar(path: Path) -> Entry:
    """The engine beside this file.

    Raises:
        DamagedEngine: it is missing or is no sidecar of this version.
    """
    try:
        record = parse_object(path.read_bytes())
        entry = Entry(Recipe.from_record(record["recipe"]), Built(**record["plan"]), path.with_suffix(PLAN))
        check_types(entry.recipe, "recipe")
        check_types(entry.built, "plan")
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedEngine(f"{path}: does not describe an engine ({error!r}); {_AGAIN}") from None
    if entry.recipe.name != path.stem:
        raise DamagedEngine(f"{path}: describes {entry.recipe.name}; {_AGAIN}")
    return entry


def find_engines(stores: Iterable[Store], source: Graph, here: Target, remedy: str) -> list[Entry]:
    """The engines of this graph that this machine may load, those with fixed shapes first.

    Raises:
        NoEngine: there is none; it says what differs in the nearest one, and the `remedy`.
    """
    entries = [entry for store in stores for entry in store.entries()]
    lacks = [entry.recipe.differences(source, here) for entry in entries]
    fitting = [entry for entry, lack in zip(entries, lacks, strict=True) if not lack]
    if not fitting:
        related = [
            lack
            for entry, lack in zip(entries, lacks, strict=True)
            if (entry.recipe.source.component, entry.recipe.target.backend) == (source.component, here.backend)
        ]
        raise NoEngine(_why_none(source, here, related), remedy)
    return sorted(fitting, key=lambda entry: not all(profile.is_static for profile in entry.recipe.profiles))


def _why_none(source: Graph, here: Target, related: list[list[str]]) -> str:
    name = f"{source.component} {source.variant}".rstrip()
    if not related:
        return f"no {here.backend} engine of {name}"
    nearest = min(related, key=lambda lack: len(lack))
    return f"no {here.backend} engine of {name} that fits: the nearest is for {'; '.join(nearest)}"
