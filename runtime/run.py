"""One run of a pipeline: its arguments checked, its steps, its pictures."""

from __future__ import annotations

import dataclasses
import secrets
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edgediffusion import __version__
from edgediffusion.engines.errors import RunCancelled, UsageError

from .arrays import F32
from .checks import check_run
from .conditioning import condition, encode_texts
from .controlnet import CONTROL_SETTINGS, bind_controlnets
from .denoiser import Denoiser, in_phases
from .families.sd import LCM
from .guidance import NO_GUIDANCE
from .images import GeneratedImage, fit, light
from .loop import Step, denoise
from .metadata import Parameters
from .noise import BROWNIAN, NOISES, NoiseSource
from .pipelines import Task, choose
from .pipelines.handover import call_at
from .pipelines.hires import HIRES
from .preview import preview
from .prompts import EMBEDS, Texts
from .safety import check_safety
from .schedulers import Scheduler, find_sampler, is_for_few_steps, make_scheduler, short_name
from .schedulers.levels import with_mu
from .settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

    from .pipeline import Pipeline

NUMBERS = {
    "guidance_scale",
    "guidance_rescale",
    "strength",
    "image_guidance_scale",
    "denoising_start",
    "denoising_end",
    "hires_scale",
    "hires_strength",
}
# What a second pass takes from the run before it when it begins, and what a refiner is told.
CARRIED = ("prompt", "negative_prompt", "seed", "num_images")
FOR_REFINER = {"vae_tiling", "num_inference_steps", "guidance_scale", "scheduler", "sigmas", "noise", "num_images"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Iterate over it for its steps, as often as you like: each time it starts anew. `len` is the number of steps.

    The fields are `Settings` with every choice made; `tables` are the scheduler's, `task` says how to begin, `then` is
    the second pass, which goes on with the last latents. `plan` makes one.
    """

    pipeline: Pipeline
    task: Task
    prompt: str | Sequence[str]
    negative_prompt: str | Sequence[str]
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
    batch_size: int | str | None = None
    strength: float
    image_guidance_scale: float
    latents: F32 | None = None
    prompt_2: str | Sequence[str] | None = None
    negative_prompt_2: str | Sequence[str] | None = None
    prompt_embeds: F32 | None = None
    negative_prompt_embeds: F32 | None = None
    pooled_prompt_embeds: F32 | None = None
    negative_pooled_prompt_embeds: F32 | None = None
    clip_skip: int = 0
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] | None = None
    image: Image | None = None
    mask: Image | None = None
    control_images: Sequence[Image] = ()
    controlnet_conditioning_scale: tuple[float, ...] = ()
    control_guidance_start: tuple[float, ...] = ()
    control_guidance_end: tuple[float, ...] = ()
    denoising_end: float | None = None
    denoising_start: float | None = None
    refiner: str | None = None
    hires_scale: float | None = None
    hires_strength: float | None = None
    hires_upscaler: str | None = None
    vae_tiling: bool = False
    then: Run | None = None

    cancelled: threading.Event = field(default_factory=threading.Event, repr=False)

    def __post_init__(self) -> None:
        check_run(self)

    def cancel(self) -> None:
        """Stop, from any thread: whoever iterates gets `RunCancelled` in place of the next step, for good.

        That holds for the batches of the run, too, and for all that `dataclasses.replace` makes of it.
        """
        self.cancelled.set()

    @property
    def texts(self) -> tuple[Texts, ...]:
        """The words of each picture, or one for all."""
        fields = [getattr(self, name) for name in Texts._fields]
        count = 1 if all(value is None or isinstance(value, str) for value in fields) else self.num_images
        each = [[value] * count if value is None or isinstance(value, str) else value for value in fields]
        return tuple(map(Texts._make, zip(*each, strict=True)))

    @property
    def given_embeds(self) -> dict[str, F32]:
        """Those of `prompt_embeds` and `negative_prompt_embeds` that there are."""
        names = ("prompt_embeds", "negative_prompt_embeds")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def first_call(self) -> int:
        """The call of the scheduler with which the run begins."""
        return self.task.first_call(self)

    @property
    def stop(self) -> int:
        """The first call that is left out."""
        return len(self.tables.timesteps) if self.denoising_end is None else call_at(self, self.denoising_end)

    def __len__(self) -> int:
        return self.stop - self.first_call + (0 if self.then is None else len(self.then))

    def __iter__(self) -> Iterator[Step]:
        """Compute each step when it is asked for.

        Raises:
            RunCancelled: see `cancel`.
        """
        steps = self._denoise()
        return self._until_cancelled(steps if self.then is None else self._and_then(steps, self.then))

    def _until_cancelled(self, steps: Iterator[Step]) -> Iterator[Step]:
        done = 0
        while not self.cancelled.is_set():
            if (step := next(steps, None)) is None:
                return
            done += 1
            yield step
        raise RunCancelled(f"cancelled after {done} of {len(self)} steps")

    def _and_then(self, steps: Iterator[Step], then: Run) -> Iterator[Step]:
        for step in steps:
            yield step
        carried = {name: getattr(self, name) for name in CARRIED}
        carried |= {name: getattr(self, name) for name in (*Texts._fields, *EMBEDS) if getattr(then, name) is not None}
        yield from dataclasses.replace(then, latents=step.latents, **carried)

    def _denoise(self) -> Iterator[Step]:
        bundle, controlled = self.pipeline.bundle, bool(self.control_images)
        noise: NoiseSource = NOISES[self.noise](self.seed, self.num_images)
        start = self.task.begin(self, noise)
        if find_sampler(self.scheduler).brownian and self.noise in BROWNIAN:
            noise = BROWNIAN[self.noise](self.seed, self.num_images, self.tables.sigmas, self.first_call)
        texts = encode_texts(self)

        def denoiser(phase: tuple[int, bool]) -> Denoiser:
            step, guided = phase
            unet = self.pipeline.unet(controlled=controlled)
            guidance = self.task.guidance(self) if guided else NO_GUIDANCE
            constants = condition(self, texts[step], unet.spec, guidance)
            channels = None if start.channels is None else guidance.channels(start.channels)
            controlnets = bind_controlnets(self, guidance, constants) if controlled else []
            return Denoiser(unet.bind(constants), guidance, channels, controlnets)

        def phase(i: int) -> tuple[int, bool]:
            return max(step for step in texts if step <= self.step_of(i)), self.is_guided(self.step_of(i))

        def steps() -> Iterator[Step]:
            with bundle.using("unet", *(self.pipeline.controlnets if controlled else ())):
                yield from denoise(
                    in_phases(denoiser, phase),
                    self.tables,
                    start.latents,
                    noise,
                    start=self.first_call,
                    stop=self.stop,
                    after_step=start.after_step,
                )

        return steps()

    def is_guided(self, step: int) -> bool:
        """Whether a step is in the guidance interval."""
        if self.guidance_interval is None:
            return True
        start, stop = (fraction * self.num_inference_steps for fraction in self.guidance_interval)
        return start <= step < stop

    def step_of(self, i: int) -> int:
        """The step that a call of the scheduler belongs to."""
        return i // find_sampler(self.scheduler).calls_per_step

    def images(self, latents: F32) -> list[GeneratedImage]:
        """Pictures of the latents of one of the steps, with their parameters.

        Warns:
            UnsafePicture: the pipeline's safety checker has flagged one, which is black.
        """
        pipeline = self.pipeline if self.then is None else self.then.pipeline
        decoded = pipeline.decode(latents, tiling=self.vae_tiling)
        pictures = [GeneratedImage(image, self.parameters(k)) for k, image in enumerate(decoded)]
        if not self.pipeline.safety_checker:
            return pictures
        with self.pipeline.bundle.using("safety_checker"):
            return check_safety(self.pipeline, pictures)

    def preview(self, step: Step) -> list[Image]:
        """Rough pictures of what the UNet takes for the pictures at a step, see `preview`.

        Raises:
            UsageError: the bundle has no projection of latents to colours.
        """
        return preview(self.pipeline, step.x0())

    def parameters(self, k: int) -> Parameters:
        """What makes picture `k`. Its seed is seed + k, and None where the noise was given as latents."""
        controls: dict[str, Any] = {name: getattr(self, name) or None for name in CONTROL_SETTINGS}
        return Parameters(
            **self.texts[k % len(self.texts)]._asdict(),
            clip_skip=self.clip_skip or None,
            num_inference_steps=self.num_inference_steps,
            scheduler=self.scheduler,
            sigmas=self.sigmas,
            guidance_scale=self.guidance_scale,
            guidance_rescale=self.guidance_rescale or None,
            guidance_interval=self.guidance_interval,
            seed=self.seed + k if self.latents is None else None,
            noise=self.noise,
            width=self.width,
            height=self.height,
            model=self.pipeline.bundle.manifest.source,
            model_hash=self.pipeline.bundle.manifest.model_hash,
            version=f"edgediffusion {__version__}",
            **controls,
            denoising_start=self.denoising_start,
            vae_tiling=self.vae_tiling or None,
            **{name: getattr(self, name) for name in self.task.options},
        )


def plan(
    pipeline: Pipeline, prompt: str | Sequence[str], negative_prompt: str | Sequence[str], settings: Settings
) -> Run:
    """A run with every choice made: what is not in `settings` is the family's, the bundle's, or a default.

    Raises:
        UsageError: an argument that cannot be used.

    Warns:
        ImageConverted, ImageResized: a picture to start from, or a mask, has another mode or size.
    """
    given: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    task = choose(pipeline.bundle.family.pipelines, given)
    if "denoising_start" in given and "latents" not in given:
        raise UsageError(f"denoising_start {given['denoising_start']}; wanted the latents that were left there as well")
    return _plan(pipeline, task, prompt, negative_prompt, given)


def _plan(
    pipeline: Pipeline,
    task: Task,
    prompt: str | Sequence[str],
    negative_prompt: str | Sequence[str],
    given: dict[str, Any],
) -> Run:
    space, family = pipeline.latent_space, pipeline.bundle.family
    size = space.width, space.height
    if "image" in given:
        pipeline.bundle.prefetch("vae_encoder")
        size = space.whole(*given["image"].size)
    if (static := pipeline.bundle.manifest.static) is not None:
        size = static.width, static.height
    defaults: dict[str, Any] = {
        "noise": "numpy",
        "width": size[0],
        "height": size[1],
        "num_images": _how_many(prompt, negative_prompt, given),
    }
    if "refiner" in given:
        defaults["denoising_end"] = 0.8
    if "hires_scale" in given:
        defaults |= {"hires_strength": 0.6, "hires_upscaler": "latent"}
    name = short_name(given.get("scheduler", pipeline.scheduler_config.get("_class_name", "")))
    few = is_for_few_steps(pipeline.scheduler_config, name)
    own = dataclasses.asdict(family.few_steps if few else family.defaults)
    if few and pipeline.bundle.manifest.takes_guidance_scale:  # of any family: SDXL's, too
        own["guidance_scale"] = LCM.few_steps.guidance_scale
    chosen = defaults | own | dict(task.defaults) | given
    chosen.pop("scheduler", None)
    sigmas = chosen.pop("sigmas", None)
    config = with_mu(pipeline.scheduler_config, space.shape(chosen["width"], chosen["height"]))
    config = task.scheduler_config(config, name, float(chosen["strength"]))
    refiner = chosen.pop("refiner", None)
    seed = chosen.pop("seed", None)
    chosen |= {name: _of_each(name, given) for name in CONTROL_SETTINGS}
    chosen |= {key: float(chosen[key]) for key in NUMBERS & chosen.keys()}
    run = Run(
        pipeline=pipeline,
        task=task,
        prompt=prompt,
        negative_prompt=negative_prompt,
        scheduler=name,
        sigmas=sigmas if sigmas is None or isinstance(sigmas, str) else ",".join(map(str, sigmas)),
        tables=make_scheduler(name, config, chosen["num_inference_steps"], sigmas=sigmas),
        seed=secrets.randbits(32) if seed is None else seed,
        refiner=None if refiner is None else refiner.bundle.manifest.source,
        **chosen,
    )
    return dataclasses.replace(run, then=_second_pass(run, given), **fitted_images(run))


def _second_pass(run: Run, given: dict[str, Any]) -> Run | None:
    """What goes on with the latents of `run`, told what was `given`. Its noise begins anew with the run's seed."""
    if run.hires_scale is not None:
        pipeline, task = run.pipeline, HIRES
        own = {key: value for key, value in given.items() if key not in {"image", "latents", "hires_scale"}}
        own |= {"strength": run.hires_strength, "hires_upscaler": run.hires_upscaler}
        width, height = pipeline.latent_space.whole(*(int(size * run.hires_scale) for size in (run.width, run.height)))
    elif "refiner" in given:
        pipeline, width, height = given["refiner"], run.width, run.height
        own = {key: given[key] for key in FOR_REFINER & given.keys()} | {"denoising_start": run.denoising_end}
        own |= _texts_for(pipeline, run, given)
        task = choose(pipeline.bundle.family.pipelines, own)
    else:
        return None
    own |= {"seed": run.seed, "width": width, "height": height}
    return _plan(pipeline, task, run.prompt, run.negative_prompt, own)


def _texts_for(refiner: Pipeline, run: Run, given: dict[str, Any]) -> dict[str, Any]:
    """What of the second prompts and the embeddings that are `given` the refiner reads too.

    One with a single text encoder reads the first prompts only, as in diffusers.

    Raises:
        UsageError: there are embeddings, which are those of other text encoders.
    """
    names = [name for name in (*Texts._fields, *EMBEDS) if name in given]
    if refiner.tokenizers.keys() == run.pipeline.tokenizers.keys():
        return {name: given[name] for name in names}
    if embeds := [name for name in names if name in EMBEDS]:
        raise UsageError(
            f"{embeds[0]} and a refiner with other text encoders; wanted a prompt, or two calls: the first with "
            "denoising_end, the second with denoising_start and embeddings of its own"
        )
    return {}


def fitted_images(run: Run) -> dict[str, Any]:
    """The fields of `run` that hold pictures, in its size and in the mode that is wanted.

    Raises:
        UsageError: a mask with nothing to draw anew.
    """
    size = run.width, run.height
    fields: dict[str, Any] = {"control_images": tuple(fit(i, *size, name="control image") for i in run.control_images)}
    if run.image is not None:
        fields["image"] = fit(run.image, *size)
    if run.mask is not None:
        fields["mask"] = fit(run.mask, *size, name="mask", mode="L")
        if not run.pipeline.latent_space.corners(light(fields["mask"])).any():
            raise UsageError("the mask is dark everywhere, so nothing would be drawn anew; paint light what should be")
    return fields


def _how_many(*told: Any) -> int:
    """Pictures, from prompts and settings: as many as the first list of them is long."""
    *prompts, given = told
    lists = (*prompts, given.get("prompt_2"), given.get("negative_prompt_2"), given.get("prompt_embeds"))
    return next((len(texts) for texts in lists if texts is not None and not isinstance(texts, str)), 1)


def _of_each(name: str, given: dict[str, Any]) -> tuple[float, ...]:
    """One of `CONTROL_SETTINGS` for each ControlNet, from what is told of them."""
    images = len(given.get("control_images", ()))
    told = given.get(name, (CONTROL_SETTINGS[name],) * images)
    values = tuple(map(float, told)) if isinstance(told, Sequence) else (float(told),)
    return values * images if len(values) == 1 and images else values
