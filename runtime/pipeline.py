"""From a prompt to pictures."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .arrays import F32
from .bundle import Bundle
from .images import GeneratedImage, to_pil
from .latents import LatentSpace
from .run import Run
from .schedulers import make_scheduler, short_name
from .tokenizer import ClipTokenizer

if TYPE_CHECKING:
    from PIL.Image import Image

BUILTIN = Path(__file__).parent / "models" / "builtin"
_COMPONENTS = ("unet", "vae_decoder", "text_encoder")  # the one that takes longest to open first


class Pipeline:
    """Text to image with one model. A context manager: leaving it frees the engines."""

    def __init__(self, bundle: Bundle) -> None:
        """Take over `bundle` and open its engines, all at once; for the errors see `load`."""
        bundle.prefetch(*_COMPONENTS)
        self.bundle = bundle
        self.tokenizer = ClipTokenizer(bundle.path / "tokenizer")
        self.scheduler_config = bundle.config("scheduler/scheduler_config.json") | dict(bundle.family.scheduler_config)
        self.latent_space = LatentSpace.from_configs(
            bundle.config("unet/config.json"), bundle.config("vae_decoder/config.json")
        )
        for name in _COMPONENTS:
            bundle.engine(name)

    @classmethod
    def load(cls, bundle: str | Path | None = None, *, backend: str = "ort", device: str = "auto") -> Pipeline:
        """Open the folder `bundle`, by default the built-in model.

        Raises:
            BundleError: there is no bundle, or it is incomplete, altered or too new.
            UnknownName: there is no such backend or device.
            BackendUnavailable: the backend or device does not work here.
        """
        opened = Bundle.open(BUILTIN if bundle is None else bundle, backend=backend, device=device)
        try:
            return cls(opened)
        except BaseException:
            opened.close()
            raise

    def __call__(
        self,
        prompt: str,
        negative_prompt: str = "",
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        scheduler: str | None = None,
        sigmas: str | Sequence[float] | None = None,
        seed: int | None = None,
        noise: str = "numpy",
        width: int | None = None,
        height: int | None = None,
        num_images: int = 1,
        latents: F32 | None = None,
    ) -> list[GeneratedImage]:
        """Pictures of `prompt`. For the arguments and errors see `steps`."""
        run = self.steps(
            prompt,
            negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            scheduler=scheduler,
            sigmas=sigmas,
            seed=seed,
            noise=noise,
            width=width,
            height=height,
            num_images=num_images,
            latents=latents,
        )
        for step in run:
            final = step.latents
        return run.images(final)

    def steps(
        self,
        prompt: str,
        negative_prompt: str = "",
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 7.5,
        scheduler: str | None = None,
        sigmas: str | Sequence[float] | None = None,
        seed: int | None = None,
        noise: str = "numpy",
        width: int | None = None,
        height: int | None = None,
        num_images: int = 1,
        latents: F32 | None = None,
    ) -> Run:
        """A run to iterate over, step by step; `decode` makes pictures of any step's latents.

        Args:
            prompt: what to draw; empty is allowed.
            negative_prompt: what not to draw; has no say when guidance_scale <= 1.
            num_inference_steps: 1 to the model's num_train_timesteps.
            guidance_scale: how strongly the prompt is followed; 1 or less is no guidance, at half the work.
            scheduler: a name in `SCHEDULERS`; None is the bundle's own.
            sigmas: a name in `SIGMA_SCHEDULES`, or one falling noise level a step; None is what the bundle says.
            seed: 0 or more; picture k has the noise of seed + k. None takes one at random.
            noise: a name in `NOISES`: whose random numbers the seed stands for; torch's give what diffusers draws.
            width, height: in pixels, multiples of 8; None is the size that the model was made for.
            num_images: pictures drawn together, 1 or more.
            latents: standard normal noise to start from, (num_images, 4, height / 8, width / 8), instead of the seed's.

        Raises:
            UsageError: an argument that cannot be used.
        """
        space = self.latent_space
        name = short_name(self.scheduler_config.get("_class_name", "") if scheduler is None else scheduler)
        return Run(
            pipeline=self,
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=float(guidance_scale),
            scheduler=name,
            sigmas=sigmas if sigmas is None or isinstance(sigmas, str) else ",".join(map(str, sigmas)),
            tables=make_scheduler(name, self.scheduler_config, num_inference_steps, sigmas=sigmas),
            seed=secrets.randbits(32) if seed is None else seed,
            noise=noise,
            width=space.width if width is None else width,
            height=space.height if height is None else height,
            num_images=num_images,
            latents=latents,
        )

    def decode(self, latents: F32) -> list[Image]:
        """The pictures of latents (n, 4, height / 8, width / 8), one after another: that bounds the memory."""
        decoder = self.bundle.engine("vae_decoder")
        scaled = self.latent_space.for_decoder(latents)
        samples = (decoder({"latent_sample": scaled[k : k + 1]})["sample"] for k in range(len(scaled)))
        return [image for sample in samples for image in to_pil(sample)]

    def close(self) -> None:
        """Free the engines. May be called twice."""
        self.bundle.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
