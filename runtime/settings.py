"""What a run can be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from .arrays import F32

if TYPE_CHECKING:
    from PIL.Image import Image

    from .pipeline import Pipeline


class Settings(TypedDict, total=False):
    """The keyword arguments of a run. One that is left out, or None, is the default.

    num_inference_steps: 1 to the model's num_train_timesteps; the default is the family's.
    guidance_scale: how strongly the prompt is followed; 1 or less is no guidance, at half the work. The family's.
    guidance_rescale: against over-exposure at high guidance scales, 0 to 1 (arXiv:2305.08891, section 3.4). 0.
    guidance_interval: from which fraction of the steps until which there is guidance, such as (0.2, 0.8); the other
        steps take half the work. An approximation, after arXiv:2404.07724: the picture is another. By default all.
    scheduler: a name in `SCHEDULERS`; by default the bundle's own.
    sigmas: a name in `SIGMA_SCHEDULES`, or one falling noise level a step; by default what the bundle says.
    seed: 0 or more; picture k has the noise of seed + k. By default one at random.
    noise: a name in `NOISES`: whose random numbers the seed stands for; torch's give what diffusers draws. NumPy's.
    width, height: in pixels, multiples of 8; by default the size that the model was made for, or that of `image`,
        rounded down to such multiples.
    num_images: how many pictures, 1 or more; by default one, or as many as there are prompts.
    batch_size: how many of them are drawn together by a call of the pipeline, or "auto": as many as fit into memory,
        or all where an engine would be built for each size of batch; by default all. A picture is the same in any
        batch, but for the rounding of sums in another order.
    latents: standard normal noise to start from, (num_images, 4, height / 8, width / 8), instead of the seed's.
    prompt_embeds, negative_prompt_embeds: what the UNet attends to, instead of the prompts,
        (1 or num_images, 77 * chunks, width), and for SDXL `pooled_prompt_embeds`, `negative_pooled_prompt_embeds`.
    clip_skip: how many of the text encoder's last layers are left out for the prompt (not for the negative prompt, as
        in diffusers), 0 or more. None.
    prompt_2, negative_prompt_2: what SDXL's second text encoder reads; by default what the first one does.
    image: a picture to start from, of any mode; it is resized to width and height.
    strength: how much of it may change, above 0 and up to 1: that part of the steps is done. The default is the
        family's, or 1 with a mask.
    mask: where `image` is painted anew: where the mask is light. It is resized as well.
    image_guidance_scale: how closely instruct-pix2pix keeps to `image`, from 1 up. The default is the family's.
    control_images: a picture for each ControlNet of the bundle; resized as well.
    controlnet_conditioning_scale: how much each of them has to say, or all alike; by default 1.
    control_guidance_start, control_guidance_end: in which part of the run's steps each has a say, 0 to 1; all of them.
    denoising_end: stop after this fraction of the training's timesteps, between 0 and 1, and leave noise in `latents`.
    refiner: another model that goes on at `denoising_end`, 0.8 unless told, as SDXL's refiner does; it reads `prompt`.
    hires_scale: draw again, enlarged by this, what was drawn; above 1.
    hires_strength: how much of the enlarged picture may change, as `strength` has it; 0.6.
    hires_upscaler: what is enlarged, a name in `UPSCALERS`: "latent" or "pixels". "latent".
    vae_tiling: encode and decode pictures of more than 512 pixels in parts, for less memory.
    denoising_start: go on from there, with `latents` as another model left them.
    """

    num_inference_steps: int | None
    guidance_scale: float | None
    guidance_rescale: float | None
    guidance_interval: tuple[float, float] | None
    scheduler: str | None
    sigmas: str | Sequence[float] | None
    seed: int | None
    noise: str | None
    width: int | None
    height: int | None
    num_images: int | None
    batch_size: int | str | None
    latents: F32 | None
    prompt_embeds: F32 | None
    negative_prompt_embeds: F32 | None
    pooled_prompt_embeds: F32 | None
    negative_pooled_prompt_embeds: F32 | None
    clip_skip: int | None
    prompt_2: str | Sequence[str] | None
    negative_prompt_2: str | Sequence[str] | None
    image: Image | None
    strength: float | None
    mask: Image | None
    image_guidance_scale: float | None
    control_images: Sequence[Image] | None
    controlnet_conditioning_scale: float | Sequence[float] | None
    control_guidance_start: float | Sequence[float] | None
    control_guidance_end: float | Sequence[float] | None
    denoising_end: float | None
    denoising_start: float | None
    refiner: Pipeline | None
    hires_scale: float | None
    hires_strength: float | None
    hires_upscaler: str | None
    vae_tiling: bool | None
