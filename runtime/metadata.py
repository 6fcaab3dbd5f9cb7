"""What made a picture, as text inside its PNG, so that the picture can be made again.

Two text chunks are written. `parameters` is the text that the Stable Diffusion web UI of AUTOMATIC1111 writes and every
gallery reads; `edgediffusion` is the same as JSON, exact where the text is not (a prompt's outer blanks, say). Reading
prefers the JSON, and takes the text of a picture that was made elsewhere.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgediffusion.engines.errors import UsageError

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

N = TypeVar("N", int, float)

JSON_KEY = "edgediffusion"
TEXT_KEY = "parameters"

# Scheduler -> the name that the web UI shows for it.
SAMPLERS = {"ddim": "DDIM", "euler": "Euler", "dpmpp_2m": "DPM++ 2M"}

_NEGATIVE = "Negative prompt:"
_SETTING = re.compile(r'\s*(?P<key>\w[^:,"]*):\s*(?P<value>"(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """All that decides a picture. None stands for what a picture made elsewhere does not say.

    `scheduler` is a key of `SCHEDULERS`, `width` and `height` are in pixels, `model` names the checkpoint and `version`
    the program. `noise` is a key of `NOISES`, `sigmas` one of `SIGMA_SCHEDULES`, or numbers between commas; the JSON
    alone says them, and most of what follows: what only some pipelines can be told, see `settings.Settings`. `other`
    holds the web UI's settings that have no field here.
    """

    prompt: str
    negative_prompt: str
    num_inference_steps: int | None
    scheduler: str | None
    guidance_scale: float | None
    seed: int | None
    width: int | None
    height: int | None
    model: str | None
    version: str | None
    noise: str | None = None
    sigmas: str | None = None
    strength: float | None = None
    image_guidance_scale: float | None = None
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    controlnet_conditioning_scale: Sequence[float] | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None
    other: Mapping[str, str] = field(default_factory=dict)

    def to_text(self) -> str:
        """The web UI's form: prompt, negative prompt, and one line of settings."""
        settings = {
            "Steps": self.num_inference_steps,
            "Sampler": None if self.scheduler is None else SAMPLERS.get(self.scheduler, self.scheduler),
            "CFG scale": None if self.guidance_scale is None else str(self.guidance_scale).removesuffix(".0"),
            "Seed": self.seed,
            "Size": None if self.width is None else f"{self.width}x{self.height}",
            "Model": self.model,
            "Denoising strength": self.strength,
            "Image CFG scale": self.image_guidance_scale,
            **self.other,
            "Version": self.version,
        }
        negative = f"{_NEGATIVE} {self.negative_prompt}" if self.negative_prompt else ""
        line = ", ".join(f"{key}: {_quote(str(value))}" for key, value in settings.items() if value is not None)
        return "\n".join(part for part in (self.prompt, negative, line) if part)

    def to_json(self) -> str:
        """All fields as a JSON object."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> Parameters:
        """Read the web UI's form.

        Raises:
            ValueError: a number in it is none.
        """
        *lines, last = text.strip().split("\n")
        if not last.startswith("Steps:"):
            lines, last = [*lines, last], ""
        start = next((i for i, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
        settings = {m["key"].strip(): _unquote(m["value"]) for m in _SETTING.finditer(last)}
        size = _SIZE.fullmatch(settings.pop("Size", ""))
        sampler = settings.pop("Sampler", None)
        steps, seed = (_number(int, settings.pop(key, None)) for key in ("Steps", "Seed"))
        guidance_scale, strength, image_guidance_scale = (
            _number(float, settings.pop(key, None)) for key in ("CFG scale", "Denoising strength", "Image CFG scale")
        )
        return cls(
            prompt="\n".join(lines[:start]),
            negative_prompt="\n".join(lines[start:]).removeprefix(_NEGATIVE).strip(),
            num_inference_steps=steps,
            scheduler=next((name for name, shown in SAMPLERS.items() if shown == sampler), sampler),
            guidance_scale=guidance_scale,
            seed=seed,
            width=int(size[1]) if size else None,
            height=int(size[2]) if size else None,
            model=settings.pop("Model", None),
            version=settings.pop("Version", None),
            strength=strength,
            image_guidance_scale=image_guidance_scale,
            other=settings,
        )

    @classmethod
    def from_json(cls, text: str) -> Parameters:
        """Read what `to_json` wrote; keys of later versions are passed over.

        Raises:
            ValueError, TypeError: it is not JSON, no object, or lacks a field.
        """
        record: dict[str, Any] = json.loads(text)
        names = {field.name for field in dataclasses.fields(cls)}
        return cls(**{key: value for key, value in record.items() if key in names})


def png_info(parameters: Parameters) -> PngInfo:
    """The two text chunks, for `Image.save(..., pnginfo=...)`."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(TEXT_KEY, parameters.to_text())
    info.add_text(JSON_KEY, parameters.to_json())
    return info


def read_parameters(path: Path) -> Parameters:
    """The parameters in the PNG file `path`.

    Raises:
        UsageError: it cannot be read, is not a PNG, or holds no parameters that can be understood.
    """
    from PIL import Image, UnidentifiedImageError
    from PIL.PngImagePlugin import PngImageFile

    try:
        with Image.open(path, formats=["PNG"]) as image:
            assert isinstance(image, PngImageFile)
            text = image.text
    except UnidentifiedImageError:
        raise UsageError(f"{path}: not a PNG file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: cannot be read as a PNG ({error})") from None
    try:
        if JSON_KEY in text:
            return Parameters.from_json(text[JSON_KEY])
        if TEXT_KEY in text:
            return Parameters.from_text(text[TEXT_KEY])
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: parameters that cannot be understood ({error})") from None
    raise UsageError(f"{path}: no parameters in this PNG (neither {JSON_KEY!r} nor {TEXT_KEY!r} among its texts)")


def _quote(value: str) -> str:
    """As the web UI does it: a JSON string when a separator is in it."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value


def _unquote(value: str) -> str:
    return str(json.loads(value)) if value.startswith('"') else value.strip()


def _number(kind: Callable[[str], N], text: str | None) -> N | None:
    return None if text is None else kind(text)
