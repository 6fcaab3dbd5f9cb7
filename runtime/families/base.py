"""What a model family is, as far as running it is concerned."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Component:
    """One network of a bundle: a folder with `config.json`, its weights and `model.onnx`."""

    folder: str
    weights: str = "diffusion_pytorch_model.safetensors"
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Family:
    """A model family. `pipeline_classes` are the `_class_name`s of `model_index.json` that belong to it."""

    pipeline_classes: tuple[str, ...]
    components: tuple[Component, ...]
