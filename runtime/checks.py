"""What a run cannot be told, refused before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.spec import TensorSpec

from .batches import AUTO, batch_limit
from .conditioning import chunks_at, prompt_steps
from .controlnet import CONTROL_SETTINGS
from .noise import NOISES
from .pipelines.hires import UPSCALERS
from .prompts import Texts
from .schedulers.config import check_strength, pick

if TYPE_CHECKING:
    from .run import Run

LARGEST = 1 << 16  # pixels of a side, about what JPEG holds; WebP holds fewer
MOST_IMAGES = 1_000_000  # names of more fill the memory before anything is drawn
_EXPORT_AGAIN = "export it again without --static: edgediffusion export BUNDLE OUT"
_SCALES = {"guidance_scale": 7.5, "image_guidance_scale": 1.5, "controlnet_conditioning_scale": 1}


def check_run(run: Run) -> None:
    """Look at all that one setting, or several together, can get wrong.

    Raises:
        UsageError: something did.
    """
    pick("noise", run.noise, NOISES)
    for check in (
        _check_numbers,
        _check_sizes,
        _check_static,
        _check_start,
        _check_hires,
        _check_clip_skip,
        _check_texts,
        _check_controlnets,
    ):
        check(run)


def _check_numbers(run: Run) -> None:
    if not 1 <= run.num_images <= MOST_IMAGES:
        raise UsageError(f"num_images {run.num_images}; wanted 1 to {MOST_IMAGES}")
    if run.batch_size not in (None, AUTO) and not (isinstance(run.batch_size, int) and run.batch_size > 0):
        raise UsageError(f"batch_size {run.batch_size}; wanted 1 or more, or auto")
    if run.seed < 0:
        raise UsageError(f"seed {run.seed}; wanted 0 or more")
    if not 0 <= run.guidance_rescale <= 1:
        raise UsageError(f"guidance_rescale {run.guidance_rescale}; wanted 0 to 1")
    if (interval := run.guidance_interval) is not None and not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
        shown = ", ".join(f"{fraction:g}" for fraction in interval)
        raise UsageError(f"guidance_interval {shown}; wanted two fractions of the steps, such as 0.2, 0.8")
    for name, usual in _SCALES.items():
        value = getattr(run, name)
        for scale in value if isinstance(value, tuple) else (value,):
            if not math.isfinite(scale):
                raise UsageError(f"{name} {scale}; wanted a finite number, such as {usual}")


def _check_sizes(run: Run) -> None:
    multiple = run.pipeline.latent_space.pixels_per_latent
    for name in ("width", "height"):
        size = getattr(run, name)
        if size > LARGEST:
            raise UsageError(f"{name} {size}; wanted {LARGEST} at most")
        if size < 1 or size % multiple:
            nearest = max(1, (size + multiple // 2) // multiple) * multiple
            raise UsageError(f"{name} {size}; wanted a positive multiple of {multiple}, such as {nearest}")


def _check_static(run: Run) -> None:
    """Against what the graphs of a static bundle are for."""
    manifest = run.pipeline.bundle.manifest
    if (static := manifest.static) is None:
        return
    if run.vae_tiling:
        raise UsageError(
            f"vae_tiling: this bundle is static, so it has no smaller tiles; leave it out, or {_EXPORT_AGAIN}"
        )
    if (run.width, run.height) != (static.width, static.height):
        raise UsageError(
            f"size {run.width}x{run.height}; this bundle is static, for {static.width}x{static.height}; "
            f"draw that, or {_EXPORT_AGAIN}"
        )
    if run.guidance_interval is not None:
        raise UsageError(f"guidance_interval: this bundle is static, for one batch; leave it out, or {_EXPORT_AGAIN}")
    rows = manifest.graphs["unet"].spec.inputs[0].shape[0]
    together = batch_limit(run) or run.num_images
    if (got := (run.num_images % together or together) * run.task.guidance(run).branches) != rows:
        usual = f"num_images {static.batch}" + (" with guidance" if rows != static.batch else "")
        raise UsageError(
            f"num_images {run.num_images} at guidance_scale {run.guidance_scale:g}: a batch of {got} for the UNet; "
            f"this bundle is static, for {rows} ({usual}); draw that, or {_EXPORT_AGAIN}"
        )


def _check_start(run: Run) -> None:
    wanted = (run.num_images, *run.pipeline.latent_space.shape(run.width, run.height))
    if run.latents is not None and run.latents.shape != wanted and not run.task.enlarges:
        raise UsageError(
            f"latents of shape {run.latents.shape}; wanted {wanted} "
            f"for num_images {run.num_images}, width {run.width}, height {run.height}"
        )
    if run.image is not None and run.latents is not None:
        raise UsageError("latents and an image to start from; wanted one of them")
    for name in ("denoising_start", "denoising_end"):
        if (fraction := getattr(run, name)) is not None and not 0 < fraction < 1:
            raise UsageError(f"{name} {fraction}; wanted a number between 0 and 1")
    if run.first_call >= run.stop:
        fractions = {name: getattr(run, name) for name in ("strength", "denoising_start", "denoising_end")}
        told = ", ".join(f"{name} {value}" for name, value in fractions.items() if value is not None)
        raise UsageError(
            f"{told}: of {run.num_inference_steps} steps none is left to do; take more steps, or another fraction"
        )


def _check_hires(run: Run) -> None:
    if run.task.enlarges:
        return
    if run.hires_scale is None:
        for name in ("hires_strength", "hires_upscaler"):
            if getattr(run, name) is not None:
                raise UsageError(f"{name} has no effect without hires_scale; leave it out")
        return
    most = LARGEST / max(run.width, run.height)
    if not 1 < run.hires_scale <= most:
        raise UsageError(f"hires_scale {run.hires_scale}; wanted a number above 1 and up to {most:g}, such as 2")
    assert run.hires_strength is not None
    check_strength(run.hires_strength, "hires_strength")
    assert run.hires_upscaler is not None
    pick("hires_upscaler", run.hires_upscaler, UPSCALERS)
    if run.denoising_end is not None:
        raise UsageError("hires_scale and denoising_end; wanted one of them")


def _check_texts(run: Run) -> None:
    inputs = {tensor.name: tensor for tensor in run.pipeline.bundle.manifest.graphs["unet"].spec.inputs}
    for name in ("prompt_2", "negative_prompt_2"):
        if getattr(run, name) is not None and len(run.pipeline.tokenizers) < 2:
            raise UsageError(f"{name}: this model has one text encoder; leave it out")
    for name in Texts._fields:
        texts = getattr(run, name)
        if not (texts is None or isinstance(texts, str)) and len(texts) != run.num_images:
            raise UsageError(f"{len(texts)} values of {name}; wanted one, or as many as num_images, {run.num_images}")
    longest = max(chunks_at(run, step) for step in prompt_steps(run))
    length, most = run.pipeline.max_tokens, inputs["encoder_hidden_states"].shape[1]
    if isinstance(most, int) and longest * length > most:
        remedy = "export it again" if run.pipeline.bundle.manifest.static is None else _EXPORT_AGAIN
        raise UsageError(
            f"a prompt of {longest} chunks of {length - 2} tokens; this bundle takes {most // length}; "
            f"shorten it, or {remedy}"
        )
    _check_embeds(run, inputs, longest * length)


def _check_embeds(run: Run, inputs: Mapping[str, TensorSpec], length: int) -> None:
    wanted: dict[str, tuple[int | str, ...]] = {"prompt_embeds": (length, inputs["encoder_hidden_states"].shape[-1])}
    if "text_embeds" in inputs:
        wanted["pooled_prompt_embeds"] = inputs["text_embeds"].shape[1:]
    for sign in ("", "negative_"):
        given = {
            name: value
            for name in ("prompt_embeds", "pooled_prompt_embeds")
            if (value := getattr(run, sign + name)) is not None
        }
        if given and given.keys() != wanted.keys():
            raise UsageError(
                f"{', '.join(sign + name for name in given)}; this model wants "
                f"{' and '.join(sign + name for name in wanted)}, or none"
            )
        if given and any(getattr(texts, sign + "prompt") for texts in run.texts):
            raise UsageError(f"{sign}prompt and {sign}prompt_embeds; wanted one of them")
        for name, value in given.items():
            if value.shape[0] not in (1, run.num_images) or value.shape[1:] != wanted[name]:
                shape = ", ".join(map(str, wanted[name]))
                raise UsageError(
                    f"{sign}{name} of shape {value.shape}; wanted (1 or num_images {run.num_images}, {shape})"
                )


def _check_clip_skip(run: Run) -> None:
    if run.clip_skip == 0:
        return
    graphs = run.pipeline.bundle.manifest.graphs
    for name in run.pipeline.tokenizers:
        layers = sum(tensor.name.startswith("hidden_states.") for tensor in graphs[name].spec.outputs)
        most = layers - 1 + (run.pipeline.bundle.family.text_layer or -1)
        if not layers:
            raise UsageError(f"clip_skip: the {name} of this bundle gives its last layer alone; export it again")
        if not 0 < run.clip_skip <= most:
            raise UsageError(f"clip_skip {run.clip_skip}; wanted 0 to {most}, the layers that {name} can do without")


def _check_controlnets(run: Run) -> None:
    images, wanted = len(run.control_images), len(run.pipeline.controlnets)
    if images not in (0, wanted):
        raise UsageError(f"{images} control_images; this model has {wanted} ControlNets, wanted one for each or none")
    for name in CONTROL_SETTINGS:
        values = len(getattr(run, name))
        if not images and values:
            raise UsageError(f"{name} has no effect without control_images; leave it out")
        if values != images:
            raise UsageError(f"{values} values of {name}; wanted one, or as many as control_images, {images}")
    for start, end in zip(run.control_guidance_start, run.control_guidance_end, strict=True):
        if not 0 <= start < end <= 1:
            raise UsageError(
                f"control_guidance_start {start} and control_guidance_end {end}; "
                "wanted the first below the second, both in 0 to 1"
            )
