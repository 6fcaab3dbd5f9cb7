"""What made a picture, written into its file, so that the picture can be made again.

It is there twice: as the text that the Stable Diffusion web UI of AUTOMATIC1111 writes and every gallery reads, and as
JSON, exact where the text is not (a prompt's outer blanks, say). A PNG has them as its text chunks `parameters` and
`edgediffusion`; JPEG and WebP as EXIF's UserComment, where the web UI has its text too, and MakerNote. Reading prefers
the JSON, and takes the text of a picture that was made elsewhere.
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
from edgediffusion.engines.json_object import parse_object
from edgediffusion.engines.typed import check_types

if TYPE_CHECKING:
    from PIL.Image import Exif, Image
    from PIL.PngImagePlugin import PngInfo

N = TypeVar("N", int, float)

JSON_KEY = "edgediffusion"
TEXT_KEY = "parameters"

# Ending of a file's name -> Pillow's name of the format.
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_SAVING: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 4},  # faster than zlib's usual 6, for files that are hardly larger
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
# Tags of EXIF 2.32; the web UI's text begins with the name of its encoding, padded to eight bytes.
_EXIF, _USER_COMMENT, _MAKER_NOTE = 0x8769, 0x9286, 0x927C
_UNICODE = b"UNICODE\0"

# Scheduler -> the name that the web UI shows for it, and the same of its sigmas.
SAMPLERS = {
    "ddim": "DDIM",
    "dpm2": "DPM2",
    "dpm2_a": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "lms": "LMS",
    "plms": "PLMS",
    "unipc": "UniPC",
}
# The web UI's name of what enlarges -> the nearest hires_upscaler; one that is not here is a network in pixels.
UPSCALERS = {"Latent": "latent", "latent": "latent", "Lanczos": "pixels", "pixels": "pixels"}
SCHEDULE_TYPES = {"karras": "Karras", "exponential": "Exponential", "beta": "Beta"}

_NEGATIVE = "Negative prompt:"
_SETTING = re.compile(r'\s*(?P<key>\w[^:,"]*):\s*(?P<value>"(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """All that decides a picture. None stands for what a picture made elsewhere does not say.

    `scheduler` is a key of `SCHEDULERS`, `width` and `height` are in pixels, `model` names the checkpoint and `version`
    the program; `model_hash` are ten digits that tell the model's weights from others. `clip_score` is how well the
    picture fits its prompt, see `scoring`, where that was asked, and `nsfw_content_detected` that it is black since a
    safety checker flagged it. `sigmas` is a key of
    `SIGMA_SCHEDULES`, or numbers between commas, `noise` a key of `NOISES`; the JSON alone says it, and most of what
    follows: what only some pipelines can be told, see `settings.Settings`. `other` holds the web UI's settings that
    have no field here.
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
    guidance_rescale: float | None = None
    guidance_interval: Sequence[float] | None = None
    clip_skip: int | None = None
    controlnet_conditioning_scale: Sequence[float] | None = None
    control_guidance_start: Sequence[float] | None = None
    control_guidance_end: Sequence[float] | None = None
    denoising_start: float | None = None
    denoising_end: float | None = None
    refiner: str | None = None
    hires_scale: float | None = None
    hires_strength: float | None = None
    hires_upscaler: str | None = None
    vae_tiling: bool | None = None
    model_hash: str | None = None
    clip_score: float | None = None
    nsfw_content_detected: bool | None = None
    other: Mapping[str, str] = field(default_factory=dict)

    def to_text(self) -> str:
        """The web UI's form: prompt, negative prompt, and one line of settings."""
        settings = {
            "Steps": self.num_inference_steps,
            "Sampler": None if self.scheduler is None else SAMPLERS.get(self.scheduler, self.scheduler),
            "Schedule type": SCHEDULE_TYPES.get(self.sigmas or ""),
            "CFG scale": None if self.guidance_scale is None else str(self.guidance_scale).removesuffix(".0"),
            "Seed": self.seed,
            "Size": None if self.width is None else f"{self.width}x{self.height}",
            "Model hash": self.model_hash,
            "Model": self.model,
            "Denoising strength": self.strength if self.hires_scale is None else self.hires_strength,
            "Refiner": self.refiner,
            "Hires upscale": self.hires_scale,
            "Hires upscaler": self.hires_upscaler,
            "Image CFG scale": self.image_guidance_scale,
            "Score": self.clip_score,
            "Clip skip": None if self.clip_skip is None else self.clip_skip + 1,  # there 1 is the last layer
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
        scheduler, sigmas = _sampler(settings.pop("Sampler", None), settings.pop("Schedule type", None))
        clip_skip = (_number(int, settings.pop("Clip skip", None)) or 1) - 1
        steps, seed = (_number(int, settings.pop(key, None)) for key in ("Steps", "Seed"))
        guidance_scale, strength, image_guidance_scale = (
            _number(float, settings.pop(key, None)) for key in ("CFG scale", "Denoising strength", "Image CFG scale")
        )
        hires_scale = _number(float, settings.pop("Hires upscale", None))
        second_pass: dict[str, Any] = {"strength": strength}
        if hires_scale is not None:
            upscaler = UPSCALERS.get(settings.get("Hires upscaler", "Latent"))
            if upscaler is not None:
                settings.pop("Hires upscaler", None)
            second_pass = {
                "hires_scale": hires_scale,
                "hires_strength": strength,
                "hires_upscaler": upscaler or "pixels",
            }
        return cls(
            prompt="\n".join(lines[:start]),
            negative_prompt="\n".join(lines[start:]).removeprefix(_NEGATIVE).strip(),
            num_inference_steps=steps,
            scheduler=scheduler,
            sigmas=sigmas,
            guidance_scale=guidance_scale,
            seed=seed,
            width=int(size[1]) if size else None,
            height=int(size[2]) if size else None,
            model=settings.pop("Model", None),
            model_hash=settings.pop("Model hash", None),
            clip_score=_number(float, settings.pop("Score", None)),
            version=settings.pop("Version", None),
            image_guidance_scale=image_guidance_scale,
            clip_skip=clip_skip or None,
            **second_pass,
            other=settings,
        )

    @classmethod
    def from_json(cls, text: str) -> Parameters:
        """Read what `to_json` wrote; keys of later versions are passed over.

        Raises:
            ValueError, TypeError: it is not JSON, no object, or lacks a field.
        """
        record = parse_object(text)
        names = {field.name for field in dataclasses.fields(cls)}
        parameters = cls(**{key: value for key, value in record.items() if key in names})
        check_types(parameters, "parameters")
        return parameters


def save(image: Image, path: Path, parameters: Parameters, **options: Any) -> None:
    """Write a picture with its parameters, in the format that the ending of the name says; WebP without loss.

    `options` are further ones of Pillow's.

    Raises:
        UsageError: it says none of `FORMATS`, or the format cannot hold so much text.
        OSError: it cannot be written.
    """
    kind = format_of(path)
    info = {"pnginfo": png_info(parameters)} if kind == "PNG" else {"exif": _exif(parameters)}
    try:
        image.save(path, kind, **_SAVING.get(kind, {}), **info, **options)
    except ValueError as error:
        raise UsageError(f"{path}: {kind} cannot hold this picture ({error}); name it .png") from None


def format_of(path: Path) -> str:
    """Pillow's name of the format that the ending of a name says.

    Raises:
        UsageError: it is none of `FORMATS`.
    """
    if (kind := FORMATS.get(path.suffix.lower())) is None:
        known = ", ".join(FORMATS)
        raise UsageError(f"{path}: pictures are written as {known}; name it {path.with_suffix('.png')}")
    return kind


def png_info(parameters: Parameters) -> PngInfo:
    """The two text chunks, for `Image.save(..., pnginfo=...)`."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(TEXT_KEY, parameters.to_text())
    info.add_text(JSON_KEY, parameters.to_json())
    return info


def _exif(parameters: Parameters) -> Exif:
    from PIL.Image import Exif

    exif = Exif()
    exif.get_ifd(_EXIF)[_USER_COMMENT] = _UNICODE + parameters.to_text().encode("utf-16-be")
    exif.get_ifd(_EXIF)[_MAKER_NOTE] = parameters.to_json().encode()
    return exif


def read_parameters(path: Path) -> Parameters:
    """The parameters in the PNG, JPEG or WebP file `path`.

    Raises:
        UsageError: it cannot be read, is no such picture, or holds no parameters that can be understood.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=sorted(set(FORMATS.values()))) as image:
            texts = _texts(image)
    except UnidentifiedImageError:
        raise UsageError(f"{path}: not a PNG, JPEG or WebP file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: cannot be read as a picture ({error})") from None
    for key, parse in {JSON_KEY: Parameters.from_json, TEXT_KEY: Parameters.from_text}.items():
        if key in texts:
            try:
                return parse(texts[key])
            except (TypeError, ValueError) as error:
                raise UsageError(f"{path}: parameters that cannot be understood ({error})") from None
    raise UsageError(f"{path}: no parameters in this picture, neither ours nor those of a web UI")


def _texts(image: Image) -> dict[str, str]:
    """What a file says of its picture, by the keys of a PNG's text chunks."""
    from PIL.PngImagePlugin import PngImageFile

    texts = dict(image.text) if isinstance(image, PngImageFile) else {}
    exif = image.getexif().get_ifd(_EXIF)
    comment, note = exif.get(_USER_COMMENT), exif.get(_MAKER_NOTE)
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        texts.setdefault(TEXT_KEY, comment.removeprefix(_UNICODE).decode("utf-16-be"))
    if isinstance(note, bytes) and note.startswith(b'{"prompt"'):  # a camera's is something else
        texts.setdefault(JSON_KEY, note.decode())
    return texts


def _sampler(shown: str | None, schedule: str | None) -> tuple[str | None, str | None]:
    """Scheduler and sigmas, as the web UI shows them; before version 1.9 it had both in one name."""
    sigmas = {shown_as: name for name, shown_as in SCHEDULE_TYPES.items()}
    if shown is not None and schedule is None and (words := shown.rpartition(" "))[2] in sigmas:
        shown, _, schedule = words
    names = {shown_as: name for name, shown_as in SAMPLERS.items()}
    return names.get(shown or "", shown), sigmas.get(schedule or "")


def _quote(value: str) -> str:
    """As the web UI does it: a JSON string when a separator is in it."""
    return json.dumps(value, ensure_ascii=False) if any(mark in value for mark in ",:\n") else value


def _unquote(value: str) -> str:
    return str(json.loads(value)) if value.startswith('"') else value.strip()


def _number(kind: Callable[[str], N], text: str | None) -> N | None:
    return None if text is None else kind(text)
