"""One run of a pipeline: its arguments checked, its steps, its pictures."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgediffusion import __version__
from edgediffusion.engines.errors import UsageError

from .arrays import F32
from .conditioning import condition
from .denoiser import Denoiser
from .images import GeneratedImage
from .loop import Step, denoise
from .metadata import Parameters
from .noise import NOISES
from .pipelines import Task, choose
from .schedulers import Scheduler, make_scheduler, short_name, start_call
from .schedulers.config import pick
from .schedulers.levels import with_mu
from .settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

    from .pipeline import Pipeline


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Iterate over it for its steps, as often as you like: each time it starts anew. `len` is the number of steps.

    The fields are `Settings` with every choice made; `tables` are the scheduler's, `task` says how to begin. `plan`
    makes one. Where there is no `image` to keep anything of, `strength` is 1.
    """

    pipeline: Pipeline
    task: Task
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
    latents: F32 | None = None
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    image: Image | None = None
    strength: float = 1.0

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
        for name in ("prompt_2", "negative_prompt_2"):
            if getattr(self, name) is not None and len(self.pipeline.tokenizers) < 2:
                raise UsageError(f"{name}: this model has one text encoder; leave it out")
        wanted = (self.num_images, *self.pipeline.latent_space.shape(self.width, self.height))
        if self.latents is not None and self.latents.shape != wanted:
            raise UsageError(
                f"latents of shape {self.latents.shape}; wanted {wanted} "
                f"for num_images {self.num_images}, width {self.width}, height {self.height}"
            )
        if self.image is not None and self.latents is not None:
            raise UsageError("latents and an image to start from; wanted one of them")
        if not len(self):
            raise UsageError(
                f"strength {self.strength} of {self.num_inference_steps} steps leaves none to do; "
                f"wanted 1/{self.num_inference_steps} or more"
            )

    @property
    def first_call(self) -> int:
        """The call of the scheduler with which the run begins."""
        return start_call(self.scheduler, self.num_inference_steps, self.strength)

    def __len__(self) -> int:
        return len(self.tables.timesteps) - self.first_call

    def __iter__(self) -> Iterator[Step]:
        """Compute each step when it is asked for.

        Warns:
            PromptTruncated: a prompt has more tokens than the text encoder reads.
            ImageResized: `image` has another size.
        """
        unet = self.pipeline.bundle.engine("unet")
        guidance = self.task.guidance(self)
        noise = NOISES[self.noise](self.seed, self.num_images)
        start = self.task.begin(self, noise)
        predict = Denoiser.over(unet, guidance, condition(self, unet.spec, guidance), start.channels)
        return denoise(predict, self.tables, start.latents, noise, start=start.call)

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
            strength=None if self.image is None else self.strength,
            seed=self.seed + k if self.latents is None else None,
            noise=self.noise,
            width=self.width,
            height=self.height,
            model=self.pipeline.bundle.manifest.source,
            version=f"edgediffusion {__version__}",
        )


def plan(pipeline: Pipeline, prompt: str, negative_prompt: str, settings: Settings) -> Run:
    """A run with every choice made: what is not in `settings` is the family's, the bundle's, or a default.

    Raises:
        UsageError: an argument that cannot be used.
    """
    space, family = pipeline.latent_space, pipeline.bundle.family
    given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    if "strength" in given and "image" not in given:
        raise UsageError(f"strength {given['strength']} of no image; give the image to start from as well")
    defaults: dict[str, Any] = {"noise": "numpy", "width": space.width, "height": space.height, "num_images": 1}
    defaults |= dataclasses.asdict(family.defaults)
    if "image" in given:
        pipeline.bundle.prefetch("vae_encoder")
        defaults["width"], defaults["height"] = space.whole(*given["image"].size)
    else:
        defaults["strength"] = 1.0
    chosen = defaults | given
    name = short_name(chosen.pop("scheduler", pipeline.scheduler_config.get("_class_name", "")))
    sigmas = chosen.pop("sigmas", None)
    config = with_mu(pipeline.scheduler_config, space.shape(chosen["width"], chosen["height"]))
    seed = chosen.pop("seed", None)
    return Run(
        pipeline=pipeline,
        task=choose(family.pipelines, chosen),
        prompt=prompt,
        negative_prompt=negative_prompt,
        scheduler=name,
        sigmas=sigmas if sigmas is None or isinstance(sigmas, str) else ",".join(map(str, sigmas)),
        tables=make_scheduler(name, config, chosen["num_inference_steps"], sigmas=sigmas),
        seed=secrets.randbits(32) if seed is None else seed,
        guidance_scale=float(chosen.pop("guidance_scale")),
        strength=float(chosen.pop("strength")),
        **chosen,
    )
