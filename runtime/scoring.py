"""How well pictures fit their prompt: the cosine between CLIP's embeddings of both (Radford et al., arXiv:2103.00020).

That is a number only where the bundle's image encoder and its last text encoder were trained together, and the text
encoder gives what is in their common space: `text_embeds`, or where it has no projection `pooler_output`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgediffusion.engines.errors import UsageError

from .arrays import F32, F64
from .images import GeneratedImage
from .prompt_syntax import plain

if TYPE_CHECKING:
    from PIL.Image import Image

    from .pipeline import Pipeline

CONFIG = "feature_extractor/preprocessor_config.json"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own


def clip_scores(pipeline: Pipeline, prompt: str, images: Sequence[Image]) -> list[float]:
    """For each picture, -1 to 1; higher is nearer to the words of the prompt, whatever they weigh.

    Raises:
        UsageError: the model has no image encoder, or one of another width than its text encoder.
    """
    if "image_encoder" not in pipeline.bundle.manifest.graphs:
        raise UsageError("this model has no image_encoder, which scores pictures; leave --best-of out")
    name, tokenizer = list(pipeline.tokenizers.items())[-1]
    with pipeline.bundle.using(name):
        encoded = pipeline.bundle.engine(name)({"input_ids": tokenizer([plain(prompt)])})
    text = encoded["text_embeds"] if "text_embeds" in encoded else encoded["pooler_output"]
    with pipeline.bundle.using("image_encoder"):
        encoder = pipeline.bundle.engine("image_encoder")
        pixels = pixel_values(pipeline, images, encoder.spec.inputs[0].shape)
        each = [encoder({"pixel_values": pixels[k : k + 1]})["image_embeds"] for k in range(len(pixels))]
    embeds = np.concatenate(each)
    if embeds.shape[-1] != text.shape[-1]:
        raise UsageError(
            f"image_encoder of width {embeds.shape[-1]}, {name} of width {text.shape[-1]}: they were not trained "
            "together, and cannot score pictures; leave --best-of out"
        )
    cosines = _unit(embeds) @ _unit(text)[0]
    return [float(cosine) for cosine in cosines]


def keep_best(pipeline: Pipeline, pictures: Sequence[GeneratedImage], count: int) -> list[GeneratedImage]:
    """The `count` that fit their prompt best, best first, each with its score as `clip_score` in its parameters.

    Raises:
        UsageError: see `clip_scores`.
    """
    scored: list[tuple[float, GeneratedImage]] = []
    for prompt in dict.fromkeys(picture.parameters.prompt for picture in pictures):
        own = [picture for picture in pictures if picture.parameters.prompt == prompt]
        scored += zip(clip_scores(pipeline, prompt, [picture.image for picture in own]), own, strict=True)
    scored.sort(key=lambda pair: -pair[0])
    return [
        GeneratedImage(picture.image, dataclasses.replace(picture.parameters, clip_score=round(score, 4)))
        for score, picture in scored[:count]
    ]


def pixel_values(pipeline: Pipeline, images: Sequence[Image], shape: Sequence[int | str]) -> F32:
    """What CLIP's vision towers see, (n, 3, size, size), with the size that is last in `shape`.

    As transformers' CLIPImageProcessor: the shorter edge resized (bicubic), the middle cut out, normalized."""
    from PIL import Image

    config = pipeline.bundle.config(CONFIG) if CONFIG in pipeline.bundle.manifest.files else {}
    size = shape[-1]
    assert isinstance(size, int)
    mean, std = (np.float32(config.get(key, own)) for key, own in (("image_mean", _MEAN), ("image_std", _STD)))
    rows = []
    for image in images:
        scale = size / min(image.size)
        resized = image.resize([max(size, int(scale * edge)) for edge in image.size], Image.Resampling.BICUBIC)
        left, top = ((edge - size) // 2 for edge in resized.size)
        cut = resized.crop((left, top, left + size, top + size)).convert("RGB")
        rows.append((np.asarray(cut, np.float32) / 255 - mean) / std)
    return np.stack(rows).transpose(0, 3, 1, 2).astype(np.float32)


def _unit(rows: F32) -> F64:
    """Rows of length one, in float64."""
    wide = rows.astype(np.float64)
    scaled: F64 = wide / np.linalg.norm(wide, axis=-1, keepdims=True)
    return scaled
