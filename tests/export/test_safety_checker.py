"""The safety checker beside diffusers' class: the same scores, the same decisions."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import CLIPConfig, CLIPImageProcessor

from edgediffusion.engines.registry import open_engine
from edgediffusion.export.component import Exported, export_component, load_network
from edgediffusion.export.families import FAMILIES
from edgediffusion.export.families.images import pictures
from edgediffusion.export.options import Options
from edgediffusion.export.sources.folder import FolderPart
from edgediffusion.export.to_onnx import quiet
from edgediffusion.export.write_bundle import export_bundle
from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.families.base import SAFETY_CHECKER
from edgediffusion.runtime.safety import is_unsafe

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
PICTURES = 24
NETWORK = FAMILIES["sd"]["safety_checker"]


@pytest.fixture(scope="module")
def checker() -> Any:
    """Random weights, with thresholds between the cosines of `PICTURES` pictures: some are over them."""
    kind: Any = StableDiffusionSafetyChecker
    with torch.random.fork_rng(), torch.no_grad(), quiet():
        torch.manual_seed(0)
        model = kind(CLIPConfig(vision_config=VISION, projection_dim=16)).eval()
        embeds = model.visual_projection(model.vision_model(clip_input())[1])
        embeds /= embeds.norm(dim=-1, keepdim=True)
        for name, share in (("special_care", 0.9), ("concept", 0.98)):
            # Around what the pictures have in common, so that thresholds part them.
            concepts = getattr(model, f"{name}_embeds")
            concepts.copy_(3 * (embeds.mean(dim=0) + 0.2 * torch.randn(concepts.shape)))
            cosines = embeds @ (concepts / concepts.norm(dim=-1, keepdim=True)).T
            getattr(model, f"{name}_embeds_weights").copy_(cosines.quantile(share, dim=0))
    return model


def clip_input() -> torch.Tensor:
    return torch.from_numpy(2 * pictures(PICTURES, 32, 32, seed=5))


@pytest.fixture(scope="module")
def saved(checker: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "safety_checker"
    checker.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    bundle = tmp_path_factory.mktemp("bundle")
    return bundle, export_component(FolderPart(saved), SAFETY_CHECKER, NETWORK, {}, bundle, Options())


def test_decisions_are_those_of_diffusers(checker: Any, exported: tuple[Path, Exported]) -> None:
    bundle, component = exported
    assert component.record.parity.error < 2e-5
    with quiet():
        _, wanted = checker(clip_input(), [np.ones((1, 1, 3))] * PICTURES)
    with open_engine(bundle / component.record.model, component.record.spec, device="cpu") as engine:
        scores = engine({"clip_input": clip_input().numpy()})
    found = [is_unsafe(*row) for row in zip(scores["special_scores"], scores["concept_scores"], strict=True)]
    assert found == wanted
    assert 3 < sum(wanted) < PICTURES - 3
    # The special concepts decide, too: without them fewer are flagged.
    alone = [is_unsafe(np.full(3, -1, np.float32), row) for row in scores["concept_scores"]]
    assert sum(alone) < sum(found)


def test_it_is_in_half_precision_only_where_named() -> None:
    options = Options(dtype={"": "float16"})
    assert (options.dtype_of("unet"), options.dtype_of("safety_checker")) == ("float16", "float32")
    assert Options(dtype={"": "float32", "safety_checker": "float16"}).dtype_of("safety_checker") == "float16"


def test_its_weights_are_read_by_diffusers(checker: Any, exported: tuple[Path, Exported]) -> None:
    bundle, _ = exported
    kind: Callable[..., Any] = StableDiffusionSafetyChecker.from_pretrained
    with quiet():
        again = kind(bundle / "safety_checker")
    for key, value in checker.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0)


def test_both_names_of_its_tower_are_read(saved: Path, tmp_path: Path) -> None:
    prefix = "vision_model.vision_model."
    weights = load_file(saved / "model.safetensors")
    plain = {key.replace(prefix, "vision_model."): value for key, value in weights.items()}
    long = {key.replace("vision_model.", prefix): value for key, value in plain.items()}
    states = []
    for k, names in enumerate((plain, long)):
        folder = tmp_path / str(k)
        shutil.copytree(saved, folder)
        save_file(names, folder / "model.safetensors")
        states.append(load_network(FolderPart(folder), NETWORK)[0].state_dict())
    assert states[0].keys() == states[1].keys() == long.keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.filterwarnings("ignore::edgediffusion.runtime.safety.UnsafePicture")
def test_the_same_pictures_are_black_as_with_diffusers(checkpoint: Path, checker: Any, tmp_path: Path) -> None:
    source, size = tmp_path / "source", VISION["image_size"]
    shutil.copytree(checkpoint, source)
    kind: Any = StableDiffusionPipeline
    extractor: Any = CLIPImageProcessor(size={"shortest_edge": size}, crop_size=size)
    asked: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}
    with quiet(), torch.no_grad():
        theirs = kind.from_pretrained(source, torch_dtype=torch.float32)
        theirs.set_progress_bar_config(disable=True)
        drawn = [theirs("a", generator=torch.Generator().manual_seed(seed), **asked).images[0] for seed in range(8)]
        seen = extractor(theirs.image_processor.numpy_to_pil(np.stack(drawn)), return_tensors="pt").pixel_values
        model = copy.deepcopy(checker)
        embeds = functional.normalize(model.visual_projection(model.vision_model(seen)[1]))
        # One concept parts the pictures by what they have not in common; the others are out of reach.
        model.special_care_embeds_weights.fill_(2)
        model.concept_embeds_weights.fill_(2)
        model.concept_embeds[3] = embeds[0] - embeds.mean(dim=0)
        model.concept_embeds_weights[3] = (embeds @ functional.normalize(model.concept_embeds[3], dim=0)).median()
        theirs.register_modules(safety_checker=model, feature_extractor=extractor)
        theirs.save_pretrained(source, safe_serialization=True)
        wanted = [theirs("a", generator=torch.Generator().manual_seed(seed), **asked) for seed in range(8)]
    export_bundle(source, tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle/model_index.json").read_text())["safety_checker"][1] == type(checker).__name__
    with Pipeline.load(tmp_path / "bundle") as pipeline:
        found = pipeline("a", seed=0, num_images=8, num_inference_steps=3, noise="torch-cpu")
    flagged = [their.nsfw_content_detected[0] for their in wanted]
    assert [bool(picture.parameters.nsfw_content_detected) for picture in found] == flagged
    assert 0 < sum(flagged) < 8
    for picture, their in zip(found, wanted, strict=True):
        np.testing.assert_allclose(np.asarray(picture.image) / 255, their.images[0], atol=2 / 255)
