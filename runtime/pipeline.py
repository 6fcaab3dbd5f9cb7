"""From a prompt to pictures."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgediffusion.engines.base import Engine, Reports, Says, silent, unsaid

from .arrays import F32
from .batches import Room, called_back, draw
from .bundle import Bundle
from .images import GeneratedImage, to_pil
from .latents import LatentSpace
from .prompts import TextEmbeds, TextEncoder
from .run import Run, plan
from .tensors import read_tensors
from .tiling import TILE, in_tiles
from .tokenizer import ClipTokenizer

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

    from .loop import Step
    from .settings import Settings

BUILTIN = Path(__file__).parent / "models" / "builtin"


class Pipeline:
    """Text to image with one model. A context manager: leaving it frees the engines."""

    def __init__(self, bundle: Bundle, *, safety_checker: bool = True) -> None:
        """Take over `bundle` and open its engines, all at once, unless it has `low_memory`; for the rest see `load`."""
        family = bundle.family
        folders = {part.folder: part.tokenizer for part in family.components if part.tokenizer is not None}
        self.controlnets = sorted(name for name in bundle.manifest.graphs if name.startswith("controlnet"))
        # The one that takes longest to open first; with ControlNets a run decides which UNet it needs.
        components = [*([] if self.controlnets else ["unet"]), "vae_decoder", *folders]
        self.safety_checker = safety_checker and "safety_checker" in bundle.manifest.graphs
        if self.safety_checker:
            components.append("safety_checker")
        bundle.prefetch(*components)
        self.bundle = bundle
        self.room = Room()
        self.encoded = OrderedDict[str, TextEmbeds]()  # the last texts, see `conditioning`
        self.tokenizers = {encoder: ClipTokenizer(bundle.path / folder) for encoder, folder in folders.items()}
        self.force_zeros_for_empty_prompt = bool(
            bundle.config("model_index.json").get("force_zeros_for_empty_prompt", family.force_zeros_for_empty_prompt)
        )
        self.scheduler_config = bundle.config("scheduler/scheduler_config.json") | dict(family.scheduler_config)
        vae = bundle.config("vae_decoder/config.json")
        self.has_tiny_vae = vae.get("_class_name") == "AutoencoderTiny"
        self.latent_space = LatentSpace.from_configs(bundle.config("unet/config.json"), vae)
        if not bundle.low_memory:
            bundle.wait(*components)

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        backend: str = "ort",
        device: str = "auto",
        build: bool = True,
        reports: Reports = silent,
        says: Says = unsaid,
        low_memory: bool = False,
        safety_checker: bool = True,
        engines: Mapping[str, Engine] | None = None,
    ) -> Pipeline:
        """Open the folder `bundle`, by default the built-in model. For the rest see `Bundle.open`.

        With `safety_checker` finished pictures are looked at by that of the bundle, if it has one, and those that it
        flags are black, see `safety`. Previews and what `decode` gives are not.
        With `low_memory` each engine is opened when it is needed and freed after that: in each run, and in each batch.
        `engines` are some of its graphs, opened by the caller, who closes them: "unet", or "unet.controlnet" for that
        which takes what ControlNets give. Several pipelines, each in a thread of its own, may share them.

        Raises:
            BundleError: there is no bundle, or it is incomplete, altered or too new. Weights are still being digested
                when this returns: altered ones are told before a picture of them is, though steps and previews may
                come before that; `bundle.verify` waits for it.
            UnknownName: there is no such backend or device.
            BackendUnavailable: the backend or device does not work here.
        """
        folder = BUILTIN if bundle is None else bundle
        opened = Bundle.open(
            folder, backend=backend, device=device, build=build, reports=reports, says=says, low_memory=low_memory
        )
        try:
            opened.use(engines or {})
            return cls(opened, safety_checker=safety_checker)
        except BaseException:
            opened.close()
            raise

    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        negative_prompt: str | Sequence[str] = "",
        *,
        callback: Callable[[Run, Step], object] | None = None,
        **settings: Unpack[Settings],
    ) -> list[GeneratedImage]:
        """Pictures of `prompt`. For the other arguments and errors see `steps`.

        Args:
            callback: called after each step with the run of the batch at hand; `run.preview(step)` shows how far it
                is, and `run.cancel()`, then or later from any thread, stops the whole call.

        Raises:
            RunCancelled: the run was cancelled.
        """
        run = self.steps(prompt, negative_prompt, **settings)
        return list(draw(run) if callback is None else draw(run, partial(called_back, callback)))

    def steps(
        self, prompt: str | Sequence[str] = "", negative_prompt: str | Sequence[str] = "", **settings: Unpack[Settings]
    ) -> Run:
        """A run to iterate over, step by step; `decode` makes pictures of any step's latents.

        Args:
            prompt: what to draw, in the syntax of `prompt_syntax`; empty is allowed. Of several each has a picture; if
                one needs more chunks of 75 tokens than another, all are made as long, which changes their pictures
                (not where the pipeline is called: then those of one length are drawn together).
            negative_prompt: what not to draw, one or as many; has no say without guidance.
            settings: see `Settings`.

        Raises:
            UsageError: an argument that cannot be used.
        """
        return plan(self, prompt, negative_prompt, settings)

    @property
    def max_tokens(self) -> int:
        """How many tokens the text encoders read at a time, begin and end among them."""
        return min(tokenizer.length for tokenizer in self.tokenizers.values())

    def text_encoders(self, clip_skip: int = 0) -> list[TextEncoder]:
        """The text encoders with their tokenizers, giving for a prompt what is before their last `clip_skip` layers."""
        layer = self.bundle.family.text_layer
        normed = layer is None and clip_skip > 0
        return [
            TextEncoder(
                tokenizer,
                self.bundle.engine(name),
                layer,
                clip_skip,
                self._final_norm(name) if normed else None,
            )
            for name, tokenizer in self.tokenizers.items()
        ]

    def _final_norm(self, name: str) -> tuple[F32, F32]:
        """Scale and shift of a text encoder's last layer."""
        names = [f"text_model.final_layer_norm.{part}" for part in ("weight", "bias")]
        _, arrays = read_tensors(self.bundle.path / self.bundle.manifest.graphs[name].weights, names)
        scale, shift = (arrays[key].astype(np.float32) for key in names)
        return scale, shift

    def unet(self, *, controlled: bool) -> Engine:
        """The UNet, or the graph of it that takes what ControlNets give."""
        return self.bundle.engine("unet", "controlnet" if controlled else None)

    def decode(self, latents: F32, *, tiling: bool = False) -> list[Image]:
        """The pictures of latents (n, 4, height / 8, width / 8), one after another: that bounds the memory.

        With `tiling` those of more than 512 pixels are decoded in parts, see `tiling.in_tiles`.
        """
        scaled = self.latent_space.for_decoder(latents)
        with self.bundle.timings.part("VAE decoder"):
            return [to_pil(sample)[0] for sample in self._each("vae_decoder", scaled, tiling)]

    def encode(self, sample: F32, *, tiling: bool = False) -> F32:
        """What the VAE encoder says of pictures (n, 3, height, width) in [-1, 1], one after another; see `decode`."""
        return np.concatenate([*self._each("vae_encoder", sample, tiling)])

    def _each(self, name: str, source: F32, tiling: bool) -> Iterator[F32]:
        with self.bundle.using(name):
            yield from self._through(self.bundle.engine(name), source, tiling, decodes=name == "vae_decoder")

    def _through(self, engine: Engine, source: F32, tiling: bool, *, decodes: bool) -> Iterator[F32]:
        (entry,) = (tensor.name for tensor in engine.spec.inputs)
        pictures = (source[k : k + 1] for k in range(len(source)))
        if not tiling:
            yield from (outputs.popitem()[1] for outputs in engine.each({entry: picture} for picture in pictures))
            return
        steps = (1, self.latent_space.pixels_per_latent)
        source_step, result_step = steps if decodes else steps[::-1]
        for picture in pictures:
            yield in_tiles(lambda x: engine({entry: x}).popitem()[1], picture, TILE, source_step, result_step)

    def close(self) -> None:
        """Free the engines. May be called twice."""
        self.bundle.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
