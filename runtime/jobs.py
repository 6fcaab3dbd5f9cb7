"""A job: a file with what to draw on each line. What is written already is not drawn again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.json_object import parse_object
from edgediffusion.engines.typed import fits

from .batches import draw, part
from .images import open_image
from .metadata import Parameters, read_parameters
from .output import Output
from .settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .loop import Step
    from .pipeline import Pipeline
    from .run import Run

JSON_LINES = {".jsonl", ".ndjson", ".json"}
# What a line can say: the settings that a picture remembers, as JSON has them, and files in the place of pictures.
KNOWN = {"prompt": "str", "negative_prompt": "str", "image": "Image", "mask": "Image"} | {
    name: getattr(kind, "__forward_arg__", str(kind)).removesuffix(" | None")
    for name, kind in Settings.__annotations__.items()
    if name in {*Parameters.__annotations__, "num_images", "control_images"} - {"refiner", "denoising_start"}
}
_HINTS = get_type_hints(Settings, localns={"Image": str, "Pipeline": object}) | {"prompt": str, "negative_prompt": str}
_OPENERS: dict[str, Callable[[Any], Any]] = {
    "Image": lambda file: open_image(Path(file)),
    "Sequence[Image]": lambda files: [open_image(Path(file)) for file in files],
}


@dataclass(frozen=True, kw_only=True)
class Order:
    """A line of the job: its run, the names of its pictures, and whether it tells the seed."""

    run: Run
    paths: tuple[Path, ...]
    seeded: bool


def read_lines(path: Path) -> dict[int, dict[str, Any]]:
    """The settings on each line, by its number from 1, see `parse_line`.

    Raises:
        UsageError: it cannot be read, is empty, or see `parse_line`.
    """
    found = {number: parse_line(path, number, text) for number, text in read_texts(path).items()}
    if not found:
        raise UsageError(f"{path}: it is empty; wanted a prompt a line, or JSON lines in a file named .jsonl")
    return found


def read_texts(path: Path) -> dict[int, str]:
    """The lines that are not blank, by number.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as a list of prompts ({error})") from None
    return {number: line.strip() for number, line in enumerate(lines, 1) if line.strip()}


def parse_line(path: Path, number: int, text: str) -> dict[str, Any]:
    """The settings on a line of the file `path`: a prompt, or with a name such as x.jsonl a JSON object.

    Raises:
        UsageError: it is no object, or has a key or value that there is no setting for.
    """
    return _parse(text, f"{path}, line {number}") if path.suffix.lower() in JSON_LINES else {"prompt": text}


def plan_job(
    pipeline: Pipeline, lines: Mapping[int, Mapping[str, Any]], settings: Mapping[str, Any], source: Path, output: Path
) -> list[Order]:
    """Check every line before the first is drawn. `settings` hold where a line says nothing; `output` gives the names.

    Raises:
        UsageError: a line that cannot be drawn, or has no prompt.
    """
    orders = []
    for number, line in lines.items():
        told = {**settings, **line}
        try:
            if "prompt" not in told:
                raise UsageError("no prompt")
            run = pipeline.steps(**told)
        except UsageError as error:
            raise UsageError(f"{source}, line {number}: {error}") from None
        stems = [f"{output.stem}-{number}"]
        if run.num_images > 1:
            stems = [f"{stems[0]}-{k}" for k in range(1, run.num_images + 1)]
        paths = tuple(map(output.with_stem, stems))
        orders.append(Order(run=run, paths=paths, seeded="seed" in told))
    return orders


def run_job(
    orders: Iterable[Order], watch: Callable[[Run], Iterable[Step]], *, force: bool
) -> Iterator[tuple[Path, bool]]:
    """The name of each picture and whether it was drawn now: those that were there stay, unless with `force`.

    Raises:
        UsageError: a picture cannot be written, or its name is taken by another one.
    """
    for order in orders:
        there = [not force and is_written(order, k) for k in range(order.run.num_images)]
        yield from ((path, False) for path, written in zip(order.paths, there, strict=True) if written)
        if all(there):
            continue
        first = there.index(False)
        rest = part(order.run, first, order.run.num_images - first)
        rest = dataclasses.replace(rest, batch_size=order.run.batch_size)
        for k, picture in enumerate(draw(rest, watch), first):
            if not there[k]:
                yield Output(order.paths[k], several=False, force=True).write(picture), True


def is_written(order: Order, k: int) -> bool:
    """Whether the file of picture `k` is there and holds what the order would draw.

    Raises:
        UsageError: it holds something else.
    """
    path = order.paths[k]
    if not path.exists():
        return False
    found, wanted = (dataclasses.asdict(p) for p in (read_parameters(path), order.run.parameters(k)))
    passed_over = {"version", "clip_score", "nsfw_content_detected"} | (set() if order.seeded else {"seed"})
    for name in wanted.keys() - passed_over:
        if json.dumps(found[name]) != json.dumps(wanted[name]):
            raise UsageError(
                f"{path}: another picture, with {name} {found[name]!r}, where the job has {wanted[name]!r}; "
                "name another --output, or take that picture away"
            )
    return True


def _parse(line: str, place: str) -> dict[str, Any]:
    try:
        record = parse_object(line)
    except ValueError as error:
        wanted = 'a line such as {"prompt": "a red apple"}'
        raise UsageError(f"{place}: cannot be read ({error}); wanted {wanted}") from None
    for name, value in record.items():
        if name not in KNOWN:
            raise UsageError(f"{place}: unknown key {name!r}; known: {', '.join(sorted(KNOWN))}")
        if value is None or not fits(value, _HINTS[name], name):
            raise UsageError(f"{place}: {name} {json.dumps(value)}; wanted {KNOWN[name].replace('Image', 'file name')}")
    return {name: _OPENERS.get(KNOWN[name], lambda value: value)(value) for name, value in record.items()}
