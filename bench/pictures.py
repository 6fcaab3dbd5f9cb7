"""The picture that is drawn again and again, and the commands that draw it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from edgediffusion.runtime.manifest import Manifest

from .processes import Report, execute

PROMPT = "a red apple"
NUM_INFERENCE_STEPS = 20
SEED = 0
GUIDANCE_SCALE = 7.5
OURS, THEIRS = "edgediffusion generate", "diffusers"
CHECKPOINT = "checkpoint"
COMMAND = "from edgediffusion.runtime.cli import script; script()"  # as the installed one has it


def drawing_commands(
    bundle: Path,
    folder: Path,
    report: Report,
    *,
    steps: int = NUM_INFERENCE_STEPS,
    guidance_scale: float = GUIDANCE_SCALE,
    device: str = "cpu",
) -> dict[str, list[str]]:
    """Commands that draw the same picture and write a PNG to `folder`: `OURS`, and `THEIRS` where it is installed.

    `THEIRS` computes in float32 on the CPU, elsewhere on the first GPU in what the bundle's UNet does. For it, the
    bundle is first written to `folder` in diffusers' own layout, unless `folder` has that already.

    Raises:
        EdgeDiffusionError: the bundle cannot be opened by diffusers.
    """
    options = ["--num-inference-steps", str(steps), "--guidance-scale", str(guidance_scale), "--seed", str(SEED)]
    options += ["--force", "-o", "ours.png", "--bundle", str(bundle)]
    ours = [sys.executable, "-c", COMMAND, "generate", PROMPT, *options]
    if any(importlib.util.find_spec(name) is None for name in ("torch", "diffusers", "transformers")):
        report("torch, diffusers and transformers are not all installed: compared with nothing")
        return {OURS: ours}
    write_checkpoint(bundle, folder, report)
    where = ["cpu", "float32"] if device == "cpu" else ["cuda", Manifest.read(bundle).graphs["unet"].dtype]
    drawn = [PROMPT, str(steps), str(guidance_scale), str(SEED), "theirs.png"]
    return {OURS: ours, THEIRS: [*_script("draw_with_diffusers"), CHECKPOINT, *where, *drawn]}


def write_checkpoint(bundle: Path, folder: Path, report: Report) -> Path:
    """The bundle as diffusers opens it, in `folder`; written unless it is there.

    Raises:
        EdgeDiffusionError: the bundle cannot be opened by diffusers.
    """
    checkpoint = folder / CHECKPOINT
    if not checkpoint.exists():
        report("writing the model in diffusers' layout")
        execute([sys.executable, "-c", COMMAND, "export", "--to-diffusers", str(bundle), CHECKPOINT], folder)
    return checkpoint


def staged_command(bundle: Path) -> list[str]:
    """A command that does what `OURS` does and prints when each stage ended; see `cold_start.stages`."""
    return [*_script("draw_in_stages"), str(bundle), PROMPT, str(NUM_INFERENCE_STEPS), str(SEED), "staged.png"]


def _script(name: str) -> list[str]:
    return [sys.executable, str(Path(__file__).parent / "scripts" / f"{name}.py")]
