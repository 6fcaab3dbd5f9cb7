"""One run of a pipeline: its arguments checked, its steps, its pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgediffusion import __version__
from edgediffusion.engines.errors import UsageError

from .arrays import F32
from .denoiser import Denoiser
from .guidance import classifier_free
from .images import GeneratedImage
from .loop import Step, denoise
from .metadata import Parameters
from .noise import NOISES
from .prompts import encode_prompts
from .schedulers import Scheduler
from .schedulers.config import pick

if TYPE_CHECKING:
    from .pipeline import Pipeline


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Iterate over it for its steps, as often as you like: each time it starts anew. `len` is the number of steps.

    The fields are the arguments of `Pipeline.steps` with every choice made; `tables` are the scheduler's.
    """

    pipeline: Pipeline
    prompt: str
    negative_prompt: str
    num_inference_steps: int
    guidance_scale: float
    scheduler: str
    sigmas: str | None
    tables: Scheduler
    seed: int
    noise: str
    width: int
    height: int
    num_images: int
    latents: F32 | None

    def __post_init__(self) -> None:
        pick("noise", self.noise, NOISES)
        multiple = self.pipeline.latent_space.pixels_per_latent
        for name in ("width", "height"):
            size = getattr(self, name)
            if size < 1 or size % multiple:
                nearest = max(1, round(size / multiple)) * multiple
                raise UsageError(f"{name} {size}; wanted a positive multiple of {multiple}, such as {nearest}")
        if self.num_images < 1:
            raise UsageError(f"num_images {self.num_images}; wanted 1 or more")
        if not math.isfinite(self.guidance_scale):
            raise UsageError(f"guidance_scale {self.guidance_scale}; wanted a finite number, such as 7.5")
        if self.seed < 0:
            raise UsageError(f"seed {self.seed}; wanted 0 or more")
        wanted = (self.num_images, *self.pipeline.latent_space.shape(self.width, self.height))
        if self.latents is not None and self.latents.shape != wanted:
            raise UsageError(
                f"latents of shape {self.latents.shape}; wanted {wanted} "
                f"for num_images {self.num_images}, width {self.width}, height {self.height}"
            )

    def __len__(self) -> int:
        return len(self.tables.timesteps)

    def __iter__(self) -> Iterator[Step]:
        """Compute each step when it is asked for.

        Warns:
            PromptTruncated: a prompt has more tokens than the text encoder reads.
        """
        bundle = self.pipeline.bundle
        prompts = [self.negative_prompt, self.prompt]
        embeds = encode_prompts(prompts, self.pipeline.tokenizer, bundle.engine("text_encoder"))
        negative_prompt_embeds, prompt_embeds = np.repeat(embeds[:, None], self.num_images, axis=1)
        noise = NOISES[self.noise](self.seed, self.num_images)
        latents = self.latents
        if latents is None:
            latents = noise.normal(self.pipeline.latent_space.shape(self.width, self.height))
        guidance = classifier_free(self.guidance_scale)
        constants = {"encoder_hidden_states": guidance.rows(prompt_embeds, negative_prompt_embeds)}
        predict = Denoiser.over(bundle.engine("unet"), guidance, constants)
        return denoise(predict, self.tables, latents.astype(np.float32) * self.tables.init_noise_sigma, noise)

    def images(self, latents: F32) -> list[GeneratedImage]:
        """Pictures of the latents of one of the steps, with their parameters."""
        pictures = enumerate(self.pipeline.decode(latents))
        return [GeneratedImage(image, self.parameters(k)) for k, image in pictures]

    def parameters(self, k: int) -> Parameters:
        """What makes picture `k`. Its seed is seed + k, and None where the noise was given as latents."""
        return Parameters(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            num_inference_steps=self.num_inference_steps,
            scheduler=self.scheduler,
            sigmas=self.sigmas,
            guidance_scale=self.guidance_scale,
            seed=self.seed + k if self.latents is None else None,
            noise=self.noise,
            width=self.width,
            height=self.height,
            model=self.pipeline.bundle.manifest.source,
            version=f"edgediffusion {__version__}",
        )
