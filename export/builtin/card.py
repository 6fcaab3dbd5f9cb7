"""Draws the figures of the model card and the documents with the built-in model.

    python -m edgediffusion.export.builtin.card grid OUT.png            64 prompts, seeds 0 to 63, no choice
    python -m edgediffusion.export.builtin.card samplers OUT.png        one prompt, eight samplers, guidance 2
    python -m edgediffusion.export.builtin.card losses WORK OUT.png     needs matplotlib

`grid` also prints for how many pictures the model's own CLIP finds the right one among the 64 prompts.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edgediffusion.runtime import Pipeline

PROMPTS = (
    "a red apple", "a smiling cat face", "a rocket", "a slice of pizza, 3d", "a blue car", "a dog face",
    "a house, noto", "a sunflower", "a robot, 3d", "a green apple, noto", "a ghost", "a cup of coffee, noto",
    "an airplane, 3d", "a guitar", "a fish, noto", "a birthday cake", "a tree, noto", "a penguin", "a crown, 3d",
    "a banana", "a purple car, noto", "a bicycle", "an octopus, 3d", "a strawberry, noto", "a red heart",
    "a yellow car, 3d", "a lion face", "a snowman, noto", "a hamburger, 3d", "a key", "a bee, noto", "a blue butterfly",
    "a soccer ball", "a panda face, 3d", "an umbrella, noto", "a train", "a green car", "a cactus, 3d", "a pumpkin",
    "a whale, noto", "a unicorn face, 3d", "a light bulb", "a camera, noto", "a dragon, 3d", "an ice cream",
    "a watermelon, noto", "a sailboat", "a turtle, 3d", "a crying face", "a face with sunglasses, 3d", "an owl",
    "a mushroom, noto", "a gift box", "a pink flower, 3d", "a fire engine", "a pineapple, noto", "a monkey face",
    "a hot dog, 3d", "a globe", "a snail, noto", "a blue guitar", "a bear face, 3d", "a carrot", "a castle, noto",
)  # fmt: skip
SAMPLERS = ("ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lms")
STEPS = (5, 10, 20, 50)
CELL = (160, 152)


def grid(out: Path) -> None:
    """Draw picture k with prompt k and seed k at the default settings."""
    with Pipeline.load() as pipeline:
        pictures = [pipeline(prompt, seed=seed)[0].image for seed, prompt in enumerate(PROMPTS)]
        sys.stdout.write(f"{_found(pipeline, pictures)} of {len(PROMPTS)} pictures are nearest to their own prompt\n")
    _sheet(pictures, PROMPTS, columns=8).save(out, optimize=True)


def samplers(out: Path) -> None:
    """Draw one noise with each sampler, a column each, with more steps from row to row."""
    with Pipeline.load() as pipeline:
        pictures = [
            pipeline("a castle, noto", seed=0, scheduler=s, num_inference_steps=n, guidance_scale=2)[0].image
            for n in STEPS
            for s in SAMPLERS
        ]
    captions = [f"{s}, {n} steps" for n in STEPS for s in SAMPLERS]
    _sheet(pictures, captions, columns=len(SAMPLERS)).save(out, optimize=True)


def _sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int) -> Image.Image:
    """Pictures row by row, each over its caption."""
    sheet = Image.new("RGB", (columns * CELL[0], len(pictures) // columns * CELL[1]), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for k, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
        left, top = k % columns * CELL[0], k // columns * CELL[1]
        sheet.paste(picture, (left + (CELL[0] - picture.width) // 2, top))
        draw.text((left + CELL[0] // 2, top + 132), caption, "black", font, anchor="ma")
    return sheet


def _found(pipeline: Pipeline, pictures: list[Image.Image]) -> int:
    """How many pictures have their own prompt nearest among all, by the cosine of CLIP's embeddings."""
    ids = pipeline.tokenizers["text_encoder"](PROMPTS)
    texts = pipeline.bundle.engine("text_encoder")({"input_ids": ids})["pooler_output"]
    pixels = np.stack([np.asarray(picture, np.float32) for picture in pictures]).transpose(0, 3, 1, 2) / 127.5 - 1
    images = pipeline.bundle.engine("image_encoder")({"pixel_values": np.ascontiguousarray(pixels)})["image_embeds"]
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return int((np.argmax(images @ texts.T, axis=1) == np.arange(len(PROMPTS))).sum())


def losses(work: Path, out: Path) -> None:
    """Plot the three stages' logs over the seconds of training."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    stages = (("clip", "loss"), ("vae", "reconstruction"), ("unet", "loss"))
    figure, axes = pyplot.subplots(1, len(stages), figsize=(12, 3), layout="constrained")
    for axis, (stage, name) in zip(axes, stages, strict=True):
        log = work / f"{stage}.jsonl"  # its first step compiles
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()[1:]]
        axis.plot([row["seconds"] for row in rows], [row[name] for row in rows])
        axis.set(title=f"{stage}: {name}, {rows[-1]['step']} steps", xlabel="seconds", yscale="log")
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    figures: dict[str, Callable[..., None]] = {"grid": grid, "losses": losses, "samplers": samplers}
    figures[sys.argv[1]](*map(Path, sys.argv[2:]))
