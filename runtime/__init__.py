"""The denoising loop and what is around it, in NumPy."""

from __future__ import annotations

from .batches import draw
from .bundle import Bundle
from .images import GeneratedImage, ImageConverted, ImageResized
from .loop import Step, denoise
from .metadata import Parameters
from .noise import NoiseSource, NumpyNoise
from .pipeline import Pipeline
from .run import Run
from .schedulers import SCHEDULERS, Scheduler
from .tokenizer import PromptTruncated

__all__ = [
    "SCHEDULERS",
    "Bundle",
    "GeneratedImage",
    "ImageConverted",
    "ImageResized",
    "NoiseSource",
    "NumpyNoise",
    "Parameters",
    "Pipeline",
    "PromptTruncated",
    "Run",
    "Scheduler",
    "Step",
    "denoise",
    "draw",
]
