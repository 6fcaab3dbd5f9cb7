"""The command `generate`."""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgediffusion.engines.errors import UsageError

from .arguments import Parser, add_low_memory, add_model, opening, print_line, utf8

if TYPE_CHECKING:
    from .images import GeneratedImage
    from .loop import Step
    from .metadata import Parameters
    from .output import Output
    from .pipeline import Pipeline
    from .progress import Bars
    from .run import Run
    from .terminal import Screen
    from .watch import Watcher

    Watch = Callable[[Run], Iterable[Step]]

SHORT_NAMES = {"steps": "num-inference-steps"}  # in --sweep


def generate(arguments: Sequence[str]) -> int:
    """See `cli.generate`."""
    options = _options(arguments)

    from .jobs import plan_job, read_lines, run_job
    from .metadata import read_parameters
    from .output import Output, default_path

    repeated = None if options.source is None else read_parameters(options.source)
    settings = _settings(options, repeated)

    lines = None if options.prompts is None else read_lines(options.prompts)
    name = settings.get("prompt", "") if lines is None else options.prompts.stem
    path = default_path(name) if options.output is None else options.output
    output = Output(path, several=options.num_images > 1, force=options.force)

    from .memory import peak_memory
    from .pipeline import Pipeline
    from .progress import bars
    from .repeat import warn_of_another_model
    from .terminal import Screen

    screen = Screen.of(sys.stderr, os.environ) if options.preview else None  # before the bars take stderr

    with ExitStack() as stack:
        shown = stack.enter_context(bars())
        load = functools.partial(
            Pipeline.load,
            **opening(options),
            reports=shown.building,
            says=shown.say,
            safety_checker=options.safety_checker,
            low_memory=options.low_memory,
        )
        pipeline = stack.enter_context(load())
        watcher = _watcher(options, pipeline, shown, screen)
        stack.callback(watcher.close)
        if options.refiner is not None:
            settings["refiner"] = stack.enter_context(load(bundle=options.refiner))
        if repeated is not None:
            warn_of_another_model(options.source, repeated, pipeline.bundle.manifest)
        if options.sweep:
            done = _draw_plate(pipeline, settings, options.sweep, output, watcher.steps)
        elif lines is None:
            done = _draw(pipeline, settings, options, output, watcher)
        else:
            orders = plan_job(pipeline, lines, settings, options.prompts, path)
            job = run_job(orders, watcher.steps, force=options.force)
            done = (str(written) if drawn else f"{written} (was there)" for written, drawn in job)
        for line in done:
            print_line(line)
        if options.profile:
            sys.stderr.writelines(f"{line}\n" for line in pipeline.bundle.timings.lines())
        if options.low_memory and (peak := peak_memory()) is not None:
            sys.stderr.write(f"peak memory: {peak / 1e6:.0f} MB\n")
    return 0


def _watcher(options: argparse.Namespace, pipeline: Pipeline, shown: Bars, screen: Screen | None) -> Watcher:
    """For --preview and --save-steps; without them, the bar alone."""
    from .preview import check_previews
    from .watch import Watcher

    if screen is None and options.save_steps is None:
        return Watcher(shown.steps, keep=False)
    check_previews(pipeline)
    return Watcher(shown.steps if screen is None else shown.unseen, screen, keep=options.save_steps is not None)


def _draw(
    pipeline: Pipeline, settings: dict[str, Any], options: argparse.Namespace, output: Output, watcher: Watcher
) -> Iterable[str]:
    """The names of the pictures, of their steps, and of the contact sheet."""
    from .batches import draw
    from .output import Output
    from .plate import contact_sheet
    from .scoring import keep_best

    count = options.num_images
    steps = None
    if options.save_steps is not None:
        steps = Output(options.save_steps, several=count > 1, force=options.force)
    pictures: Iterable[GeneratedImage] = draw(
        pipeline.steps(**settings | {"num_images": options.best_of or count}), watcher.steps
    )
    if options.best_of is not None:
        pictures = keep_best(pipeline, list(pictures), count)
    images = []
    for picture in pictures:
        animation = watcher.drawn(picture)
        with pipeline.bundle.timings.part("write the file"):
            path = output.write(picture)
        images.append(picture.image)
        yield str(path)
        if steps is not None and not picture.parameters.nsfw_content_detected:
            yield str(steps.write(animation))
    if options.grid:
        sheet = Output(output.path.with_stem(f"{output.path.stem}-grid"), several=False, force=options.force)
        yield str(sheet.write(contact_sheet(images)))


def _draw_plate(
    pipeline: Pipeline, settings: dict[str, Any], sweep: Sequence[tuple[str, list[str]]], output: Output, watch: Watch
) -> Iterable[str]:
    """The name of the plate; all on it have the same seed, unless that is what varies."""
    import secrets

    from .batches import draw
    from .plate import labels, plate, variants

    values = {name: [(text, _setting(name, text)) for text in texts] for name, texts in sweep}
    settings = {"seed": secrets.randbits(32)} | settings
    runs = [[pipeline.steps(**settings | cell) for cell in row] for row in variants(values)]
    rows = [[picture.image for run in row for picture in draw(run, watch)] for row in runs]
    yield str(output.write(plate(rows, *labels(values))))


def _setting(name: str, text: str) -> dict[str, Any]:
    """What the option `name` with the value `text` tells the pipeline."""
    option = SHORT_NAMES.get(name, name)
    if option == "prompt":
        return {"prompt": text}
    told, usual = (_settings(_options(["", *flags]), None) for flags in ([f"--{option}={text}"], []))
    changed = {key: value for key, value in told.items() if key not in usual}
    if not changed:
        raise UsageError(f"sweep {name}: it is no setting of a picture; wanted one such as scheduler, steps, size")
    return changed


def _settings(options: argparse.Namespace, repeated: Parameters | None) -> dict[str, Any]:
    """What the pipeline is told: the options, and under them what made the picture of --from."""
    from .images import open_image
    from .settings import Settings

    names = {"prompt", "negative_prompt", *Settings.__annotations__}
    told = {name: value for name, value in vars(options).items() if name in names and value is not None}
    told |= {name: open_image(told[name]) for name in ("image", "mask") if name in told}
    if options.control_image:
        told["control_images"] = [open_image(path) for path in options.control_image]
    if options.size is not None:
        told["width"], told["height"] = options.size
    if repeated is None:
        return told

    from .repeat import repeat

    return repeat(options.source, repeated, told.keys()) | told


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("generate", "Draw pictures of a prompt, and print the names of their files.")
    add = parser.add_argument
    add(
        "prompt",
        nargs="?",
        type=utf8,
        help="what to draw; (word:1.3), (word) and [word] weigh words, [from:to:0.4] changes them on the way, BREAK "
        "begins a new chunk, and \\( \\) \\[ \\] are the signs themselves",
    )
    add("-o", "--output", type=Path, metavar="FILE", help="a .png, .jpg or .webp; named after the prompt when left out")
    add("--force", action="store_true", help="overwrite FILE; else the next free number is added to its name")
    add("--prompts", type=Path, metavar="FILE", help="a job: a prompt a line, or JSON lines (.jsonl) of any settings")
    add(
        "--sweep",
        type=_sweep,
        action="append",
        metavar="NAME=A,B",
        help="draw the variants of an option on one labelled plate; again for rows: --sweep scheduler=ddim,euler",
    )
    add("--grid", action="store_true", help="write a contact sheet of the pictures, too")
    add("--best-of", type=int, metavar="N", help="draw N and keep the --num-images that fit the prompt best (CLIP)")
    add("--from", type=Path, dest="source", metavar="PICTURE", help="repeat what made it, but for what is told beside")
    add("--negative-prompt", type=utf8, metavar="TEXT", help="what not to draw")
    add("--prompt-2", type=utf8, metavar="TEXT", help="for SDXL's second text encoder; default: the prompt")
    add("--negative-prompt-2", type=utf8, metavar="TEXT", help="for the same; default: the negative prompt")
    add("--clip-skip", type=int, metavar="N", help="layers of the text encoder to leave out at the end; default: none")
    add("--num-inference-steps", type=int, metavar="N", help="default: what suits the model")
    add("--scheduler", metavar="NAME", help="see: edgediffusion schedulers; default: the model's own")
    add(
        "--sigmas",
        type=_sigmas,
        metavar="NAME",
        help="a sigma schedule, or numbers between commas; default: the model's",
    )
    add("--guidance-scale", type=float, metavar="X", help="default: what suits the model; 1 is no guidance")
    add("--guidance-rescale", type=float, metavar="X", help="0 to 1, against over-exposure at high scales; default: 0")
    add(
        "--guidance-interval",
        type=_interval,
        metavar="FROM-TO",
        help="the fractions of the steps with guidance, such as 0.2-0.8: less work, and another picture; default: all",
    )
    add("--seed", type=int, metavar="N", help="default: a random one; the picture remembers it")
    add("--noise", metavar="NAME", help="numpy, torch-cpu or torch-cuda; default: numpy")
    add("--size", type=_size, metavar="WxH", help="in pixels; default: what the model is made for")
    add("--init-image", type=Path, dest="image", metavar="FILE", help="a picture to start from, resized to --size")
    add("--strength", type=float, metavar="X", help="how much of it may change, up to 1; default: what suits the model")
    add("--mask", type=Path, metavar="FILE", help="what is light in it is drawn anew, the rest of the picture stays")
    add(
        "--control-image",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="for a ControlNet of the model; once for each",
    )
    for_each: Any = {"type": float, "action": "append", "metavar": "X"}
    add("--controlnet-conditioning-scale", **for_each, help="how much it has to say; once for each, default: 1")
    add("--control-guidance-start", **for_each, help="from which part of the steps on; once for each, default: 0")
    add("--control-guidance-end", **for_each, help="up to which part of them; once for each, default: 1")
    add("--hires-scale", type=float, metavar="X", help="draw the picture again, X times as large; above 1")
    add("--hires-strength", type=float, metavar="X", help="how much of it may change then; default: 0.6")
    add("--hires-upscaler", metavar="NAME", help="what is enlarged: latent or pixels; default: latent")
    add("--refiner", type=Path, metavar="DIR", help="the folder of a model that goes on, such as SDXL's refiner")
    add("--denoising-end", type=float, metavar="X", help="the part of the noise that is left to it; default: 0.8")
    add("--preview", action="store_true", help="show the picture growing in the terminal")
    add("--save-steps", type=_moving, metavar="FILE", help="write how it grew, too: an animated .png or .webp")
    add("--vae-tiling", action="store_true", default=None, help="encode and decode in parts of 512 pixels: less memory")
    add("--image-guidance-scale", type=float, metavar="X", help="how closely instruct-pix2pix keeps to the picture")
    add("--num-images", type=int, default=1, metavar="N", help="default: %(default)s")
    add(
        "--batch-size",
        type=_batch_size,
        default="auto",
        metavar="N",
        help="how many are drawn at once; default: %(default)s, as many as fit into memory",
    )
    add(
        "--no-safety-checker",
        dest="safety_checker",
        action="store_false",
        help="leave out that of the model, which makes what it flags black",
    )
    add_low_memory(parser)
    add("--profile", action="store_true", help="print what the time went to, from the start of the process")
    add_model(parser)
    options = parser.parse_args(arguments)
    if options.prompt is None and options.source is None and options.prompts is None:
        parser.error("the following arguments are required: prompt")
    _check_together(options, parser)
    return options


def _check_together(options: argparse.Namespace, parser: Parser) -> None:
    for name, others in {
        "prompts": ("sweep", "grid", "best_of", "save_steps"),
        "sweep": ("grid", "best_of", "save_steps"),
        "best_of": ("save_steps",),
    }.items():
        for other in others:
            if getattr(options, name) and getattr(options, other):
                parser.error(f"--{name} and --{other}: wanted one of them".replace("_", "-"))
    if options.sweep and options.num_images != 1:
        parser.error(f"--sweep and --num-images {options.num_images}: there is one picture of each variant")
    if options.best_of is not None and options.best_of < max(1, options.num_images):
        parser.error(f"--best-of {options.best_of}: wanted at least --num-images, {options.num_images}")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted WIDTHxHEIGHT, such as 512x512")
    return int(match[1]), int(match[2])


def _sweep(text: str) -> tuple[str, list[str]]:
    name, found, values = text.partition("=")
    if not (name and found and all(values.split(","))):
        raise argparse.ArgumentTypeError(f"{text!r}, wanted NAME=A,B, such as scheduler=ddim,euler or steps=5,10")
    return name.removeprefix("--"), values.split(",")


def _moving(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".png", ".webp"):
        raise argparse.ArgumentTypeError(f"{text!r}, wanted a file that can move, such as {path.with_suffix('.png')}")
    return path


def _batch_size(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted a number or auto") from None


def _interval(text: str) -> tuple[float, float]:
    try:
        start, stop = map(float, text.split("-"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}, wanted FROM-TO, such as 0.2-0.8") from None
    return start, stop


def _sigmas(text: str) -> str | tuple[float, ...]:
    if not text[:1].isdigit():
        return text
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}, wanted a name or numbers between commas, such as 14.6,2.5,0.4"
        ) from None
