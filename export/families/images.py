"""Pictures for the parity samples, and CLIP's image tower."""

from __future__ import annotations

import numpy as np

from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec

from ..sources import Config
from ..wrappers import CONCEPTS, SPECIAL_CONCEPTS, ImageEncoder, SafetyChecker, safety_checker_config
from .base import POSITION_IDS, Network, Sample, Seen


def image_encoder_spec(config: Config) -> GraphSpec:
    """Pictures to points in the space of prompts."""
    size = config["image_size"]
    return GraphSpec(
        "image_encoder",
        (TensorSpec("pixel_values", "float32", ("batch", 3, size, size)),),
        (TensorSpec("image_embeds", "float32", ("batch", config["projection_dim"])),),
    )


def image_encoder_samples(config: Config, seen: Seen) -> list[Sample]:
    """See `_samples`."""
    return _samples("pixel_values", config["image_size"])


def safety_checker_spec(config: Config) -> GraphSpec:
    """Pictures to how far they are over the threshold of each concept."""
    size = safety_checker_config(config).vision_config.image_size
    return GraphSpec(
        "safety_checker",
        (TensorSpec("clip_input", "float32", ("batch", 3, size, size)),),
        (
            TensorSpec("special_scores", "float32", ("batch", SPECIAL_CONCEPTS)),
            TensorSpec("concept_scores", "float32", ("batch", CONCEPTS)),
        ),
    )


def safety_checker_samples(config: Config, seen: Seen) -> list[Sample]:
    """See `_samples`."""
    return _samples("clip_input", safety_checker_config(config).vision_config.image_size)


def _samples(name: str, size: int) -> list[Sample]:
    """Pictures in about the range that the mean and deviation of the preprocessor give."""
    return [Sample(f"batch {n}", {name: 2 * pictures(n, size, size, seed=n)}) for n in (2, 1)]


def pictures(batch: int, height: int, width: int, *, seed: int) -> Array:
    """(batch, 3, height, width) float32 in [-1, 1]: smooth colours with a few sharp edges."""
    rng = np.random.default_rng(seed)
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)
    image = np.zeros((batch, 3, height, width))
    for fy, fx in rng.uniform(-4, 4, (6, 2)):
        phase = rng.uniform(0, 2 * np.pi, (batch, 3, 1, 1))
        image += np.sin(2 * np.pi * (fy * y + fx * x) + phase)
    image[..., height // 4 : height // 2, width // 3 : width // 2] *= -1
    result: Array = (image / np.abs(image).max()).astype(np.float32)
    return result


def shape_label(array: Array) -> str:
    """Words for the batch and the size of (batch, channels, height, width)."""
    batch, _, height, width = array.shape
    return f"batch {batch}, {height}x{width}"


IMAGE_ENCODER = Network(
    module=ImageEncoder,
    spec=image_encoder_spec,
    samples=image_encoder_samples,
    folders=("image_encoder",),
    batch=1,
    skip=(POSITION_IDS,),
)
SAFETY_CHECKER = Network(
    module=SafetyChecker,
    spec=safety_checker_spec,
    samples=safety_checker_samples,
    folders=("safety_checker",),
    batch=1,
    renames=((r"^vision_model\.(?!vision_model\.)", "vision_model.vision_model."),),
    skip=(POSITION_IDS,),
)
