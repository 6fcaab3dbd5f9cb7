"""The safety checker of Stable Diffusion 1.x: CLIP's embedding of a picture against concepts' (arXiv:2210.04610).

Its graph gives for each concept how far the picture is over a threshold; the decision is diffusers'.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .arrays import F32
from .images import GeneratedImage
from .scoring import pixel_values

if TYPE_CHECKING:
    from PIL.Image import Image

    from .pipeline import Pipeline

ADJUSTMENT = 0.01  # what a special concept lowers the other thresholds by


class UnsafePicture(UserWarning):
    """A picture was flagged, and is black."""


def check_safety(pipeline: Pipeline, pictures: Sequence[GeneratedImage]) -> list[GeneratedImage]:
    """The pictures, those flagged replaced by black ones whose parameters say so.

    Warns:
        UnsafePicture: one was flagged.
    """
    from PIL import Image

    checked = []
    for picture in pictures:
        if is_unsafe(*safety_scores(pipeline, picture.image)):
            seed = picture.parameters.seed
            warnings.warn(
                f"the safety checker flagged the picture{'' if seed is None else f' of seed {seed}'}: it is black; "
                "take another seed or prompt, or leave the checker out with --no-safety-checker",
                UnsafePicture,
                stacklevel=2,
            )
            parameters = dataclasses.replace(picture.parameters, nsfw_content_detected=True)
            picture = GeneratedImage(Image.new("RGB", picture.image.size), parameters)
        checked.append(picture)
    return checked


def safety_scores(pipeline: Pipeline, image: Image) -> tuple[F32, F32]:
    """How far a picture is over the thresholds of the special concepts (3,) and of the others (17,)."""
    engine = pipeline.bundle.engine("safety_checker")
    pixels = pixel_values(pipeline, [image], engine.spec.inputs[0].shape)
    scores = engine({"clip_input": pixels})
    return scores["special_scores"][0], scores["concept_scores"][0]


def is_unsafe(special_scores: F32, concept_scores: F32) -> bool:
    """Whether one concept is over its threshold, to three digits; that is lower where a special one is over its own."""
    adjustment = 0.0
    for score in special_scores:
        if round(score + adjustment, 3) > 0:
            adjustment = ADJUSTMENT
    return any(round(score + adjustment, 3) > 0 for score in concept_scores)
