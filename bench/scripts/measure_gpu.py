"""All that README.md says of a GPU, measured by one command on an idle machine: FOLDER [--only NAME,...].

FOLDER/sd15, sdxl and sd21 take random weights in the real shape of these models, exported in float16, all at once. A
checkpoint that is there is exported in the place of random weights, and a bundle that is there is taken as it is.
Then `STEPS` run one after the other, each as a process of its own: FOLDER/NAME.json is the result, NAME.txt what it
wrote to the screen. FOLDER/steps.txt gets a line for each step as it ends: name, status (124: the limit), seconds.
A step that has its result is not run again, and one that fails stops no other; then the status is 1 in the end.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..benchmark import say

SUITE = "edgediffusion.bench"
STAGE, EXPORT = f"{SUITE}.scripts.measure_cuda", f"{SUITE}.scripts.export_random"
EXPORT_SECONDS = 7200
BOTH, EAGER = "--against diffusers,torch-compile", "--against diffusers"


@dataclass(frozen=True)
class Step:
    """What measures `model`. `limit` is in seconds; `arguments` of `module` are those beside bundle and result."""

    limit: int
    model: str
    module: str
    arguments: str


# The most important first.
STEPS = {
    "sd15": Step(900, "sd15", SUITE, f"{BOTH} --num-inference-steps 50 --rounds 4 --batches 8 "
                 "--cases disk,text_encoder,unet,vae_decoder,loop,picture,throughput,energy,roofline"),
    "sdxl": Step(900, "sdxl", SUITE, f"{BOTH} --num-inference-steps 30 --rounds 4 "
                 "--cases unet,vae_decoder,loop,picture"),
    "turbo": Step(600, "sd21", SUITE, f"{BOTH} --num-inference-steps 1 --guidance-scale 1 --rounds 8 "
                  "--cases text_encoder,unet,vae_decoder,picture"),
    "memory": Step(400, "sd15", SUITE, f"{BOTH} --rounds 1 --cases memory"),
    "start": Step(400, "sd15", SUITE, f"{EAGER} --rounds 3 --cases start"),
    "load": Step(300, "sd15", SUITE, f"{EAGER} --rounds 3 --cases load"),
    "components-sdxl": Step(400, "sdxl", STAGE, "components"),
    "components-sd21": Step(200, "sd21", STAGE, "components"),
    "out-of-memory": Step(200, "sd15", STAGE, "out_of_memory"),
    "quality": Step(300, "sd15", SUITE, f"{EAGER} --rounds 1 --cases quality"),
    "throughput": Step(400, "sd15", SUITE, f"{EAGER} --rounds 3 --cases throughput"),
    "growth": Step(300, "sd15", SUITE, "--rounds 3 --cases growth"),
    "loop-sdxl": Step(100, "sdxl", STAGE, "loop"),
    "loop-sd21": Step(100, "sd21", STAGE, "loop"),
    "loop-sd15": Step(100, "sd15", STAGE, "loop"),
    "components-sd15": Step(200, "sd15", STAGE, "components"),
    "kernels-sd15": Step(200, "sd15", STAGE, "kernels"),
    "beside-sd15": Step(300, "sd15", STAGE, "beside"),
    "memory-sd15": Step(100, "sd15", STAGE, "memory"),
    "picture": Step(100, "sd15", STAGE, "picture"),
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run what has no result yet; 1 where a step has none in the end."""
    options = _options(arguments)
    folder: Path = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    models = sorted({STEPS[name].model for name in options.only}, reverse=True)  # SDXL takes longest
    run(folder, {f"export-{model}": export for model, export in exports(folder, models).items()})
    for name in options.only:
        if (folder / f"{name}.json").exists():
            say(f"{name}: measured already")
        else:
            run(folder, {name: command(name, folder, options.device)})
    return int(not all((folder / f"{name}.json").exists() for name in options.only))


def exports(folder: Path, models: Sequence[str]) -> dict[str, list[str]]:
    """The commands that export those of `models` that have no bundle yet; the first gets half of the cores."""
    lacking = [model for model in models if not (folder / model / "bundle").exists()]
    cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
    shares = (cores[::2], cores[1::4], cores[3::4]) if len(cores) > len(lacking) > 1 else [cores] * len(lacking)
    found = {}
    for model, share in zip(lacking, shares, strict=False):
        export = python(EXPORT_SECONDS, EXPORT, model, str(folder / model), "fp16")
        found[model] = ["taskset", "-c", ",".join(share), *export]
    return found


def command(name: str, folder: Path, device: str) -> list[str]:
    """Of a step."""
    step, result = STEPS[name], str(folder / f"{name}.json")
    model, arguments = folder / step.model, step.arguments.split()
    if step.module == STAGE:
        return python(step.limit, STAGE, *arguments, str(model), result, device)
    settings = ["--device", device, "--cores", str(len(os.sched_getaffinity(0))), "--json", result]
    return python(step.limit, SUITE, str(model / "bundle"), *arguments, *settings)


def python(limit: int, module: str, *arguments: str) -> list[str]:
    """Runs a module; after `limit` seconds it and all that it started are interrupted, then killed."""
    return ["timeout", "--signal=INT", "--kill-after=20", str(limit), sys.executable, "-m", module, *arguments]


def run(folder: Path, commands: Mapping[str, Sequence[str]]) -> None:
    """All at once; a line of each goes to steps.txt as it ends."""
    started, running = time.monotonic(), dict[str, subprocess.Popen[bytes]]()
    try:
        for name, command in commands.items():
            with (folder / f"{name}.txt").open("wb") as screen:
                running[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=screen, stderr=screen)
        while running:
            time.sleep(0.1)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                line = f"{name} {running.pop(name).returncode} {time.monotonic() - started:.0f} s"
                say(line)
                with (folder / "steps.txt").open("a", encoding="utf-8") as steps:
                    steps.write(f"{line}\n")
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)  # `timeout` passes it on
            process.wait()


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="measure_gpu", description="Measure all that README.md says of a GPU.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for models and results")
    parser.add_argument("--only", type=_names, default=list(STEPS), metavar="NAME,...", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--device", default="cuda", metavar="NAME", help="cpu: a rehearsal; default: %(default)s")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in STEPS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r}, wanted some of {', '.join(STEPS)}")
    return names


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
